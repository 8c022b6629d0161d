//! The dataset options of `forebay bench`: what is said, read and checked into a load. Names and defaults are those of
//! `vllm bench serve` wherever it has them.

use std::fmt::Display;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use forebay_core::toml_reader::notation::duration_text;
use forebay_core::units::parse_duration;
use forebay_lab::load::client::Client;
use forebay_lab::load::counting::Counted;
use forebay_lab::load::dataset::conversations::{Conversations, Think};
use forebay_lab::load::dataset::sharegpt::{self, PromptAndAnswer};
use forebay_lab::load::dataset::trace::{self, Form};
use forebay_lab::load::dataset::{Dataset, Prefixes, lines};
use forebay_lab::load::workload::Endpoint;

const INPUT_LEN: u32 = 1024;
const OUTPUT_LEN: u32 = 128;

/// The datasets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Name {
    /// Random words, which --seed chooses
    Random,
    /// The lines of a file: {"prompt": …} or {"messages": […]}, and "output_tokens" if wanted
    #[value(alias = "jsonl")]
    Custom,
    /// Random prompts behind a few common beginnings, in random order
    PrefixRepetition,
    /// The first prompt and answer of each conversation in a ShareGPT file
    #[value(name = "sharegpt")]
    ShareGpt,
    /// A trace in the form of Mooncake's: timestamps in ms, a hash id for each block of 512 tokens. Equal ids give equal text
    Trace,
    /// A trace in that form with the defaults of `vllm bench serve`: timestamps in s, blocks of 16 tokens
    TimedTrace,
    /// Conversations: each prompt repeats the earlier ones and the answers received. --request-rate and --max-concurrency
    /// count conversations, --num-prompts all of their prompts
    Conversations,
}

/// The options that choose and shape a dataset.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Prompts")]
pub(super) struct DatasetArgs {
    /// The source of the prompts
    #[arg(long, visible_alias = "dataset", value_enum, default_value_t = Name::Random)]
    dataset_name: Name,
    /// The file of custom, sharegpt, trace or timed_trace
    #[arg(long, value_name = "FILE")]
    dataset_path: Option<PathBuf>,
    /// random: tokens of each prompt, behind its prefix [default: 1024]
    #[arg(long, visible_alias = "random-input-len", value_name = "TOKENS", value_parser = tokens)]
    input_len: Option<u32>,
    /// Tokens of each answer, at most [default: 128; sharegpt: as in the file]
    #[arg(long, visible_alias = "random-output-len", value_name = "TOKENS", value_parser = tokens)]
    output_len: Option<u32>,
    /// random: tokens that all prompts begin with [default: 0]
    #[arg(long, value_name = "TOKENS")]
    random_prefix_len: Option<u32>,
    /// prefix_repetition: tokens of each beginning [default: 256]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    prefix_repetition_prefix_len: Option<u32>,
    /// prefix_repetition: tokens of each prompt behind its beginning [default: 256]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    prefix_repetition_suffix_len: Option<u32>,
    /// prefix_repetition: how many beginnings; each has --num-prompts divided by this many prompts [default: 10]
    #[arg(long, value_name = "N", value_parser = tokens)]
    prefix_repetition_num_prefixes: Option<u32>,
    /// prefix_repetition: tokens of each answer, at most [default: --output-len]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    prefix_repetition_output_len: Option<u32>,
    /// sharegpt: tokens of each answer, at most [default: those of the answer in the file]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    sharegpt_output_len: Option<u32>,
    /// trace: tokens of the block that a hash id stands for [default: 512; timed_trace: 16]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    timed_trace_chunk_hash_size: Option<u32>,
    /// trace: seconds in one unit of a timestamp [default: 0.001; timed_trace: 1]
    #[arg(long, value_name = "SECONDS", value_parser = factor)]
    timed_trace_sec_multiplier: Option<f64>,
    /// trace: send so many times as fast as the trace [default: 1]
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    trace_speedup: Option<f64>,
    /// trace: ignore its times, and send as --request-rate and --max-concurrency say
    #[arg(long, conflicts_with = "trace_speedup")]
    no_self_timed: bool,
    /// conversations: prompts of each [default: 5]
    #[arg(long, value_name = "N", value_parser = tokens)]
    conversations_num_turns: Option<u32>,
    /// conversations: tokens that the first prompts of all begin with [default: 0]
    #[arg(long, value_name = "TOKENS")]
    conversations_common_prefix_len: Option<u32>,
    /// conversations: tokens that follow in a first prompt, of its own conversation [default: 512]
    #[arg(long, value_name = "TOKENS")]
    conversations_prefix_len: Option<u32>,
    /// conversations: new tokens in each prompt, the first included [default: 128]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    conversations_input_len: Option<u32>,
    /// conversations: tokens of each answer, at most [default: --output-len]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    conversations_output_len: Option<u32>,
    /// conversations: the least time between an answer and the next prompt, such as 2s [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    conversations_think_time: Option<Duration>,
    /// conversations: the mean of the random time that is added, of an exponential distribution [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    conversations_think_time_mean: Option<Duration>,
}

fn tokens(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 1..=10_000_000) => Ok(number),
        _ => Err("it is a whole number from 1 to 10000000".to_owned()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("it is a finite number above 0".to_owned()),
    }
}

/// A load as the options say it.
pub(super) struct Chosen {
    /// The dataset; for sharegpt that of the prompts that fit, once they are counted.
    pub(super) dataset: Dataset,
    /// Prompts that are sent.
    pub(super) num_prompts: u32,
    /// Tokens of a random prompt behind its beginning.
    pub(super) input_len: u32,
    /// Tokens of an answer, at most, where the dataset does not say it.
    pub(super) output_len: u32,
    /// Tokens of each prompt, where all have as many.
    pub(super) told_input_len: Option<u32>,
    /// Tokens of each answer, at most, where all have as many.
    pub(super) told_output_len: Option<u32>,
    /// The dataset in words; none for random prompts that share nothing.
    pub(super) described: Option<String>,
    /// The factor by which it is sent faster than its trace; none where the rate is the user's.
    pub(super) speedup: Option<f64>,
    /// Notes on what the user might not expect.
    pub(super) notes: Vec<String>,
    uncounted: Option<(Vec<PromptAndAnswer>, Option<u32>)>,
}

impl DatasetArgs {
    /// Reads what the options name, and checks that they go together.
    pub(super) fn chosen(&self, num_prompts: u32, endpoint: Endpoint, seed: u64) -> Result<Chosen, String> {
        self.go_together()?;
        let output_len = self.output_len.unwrap_or(OUTPUT_LEN);
        let plain = Chosen {
            dataset: Dataset::Random,
            num_prompts,
            input_len: self.input_len.unwrap_or(INPUT_LEN),
            output_len,
            told_input_len: None,
            told_output_len: Some(output_len),
            described: None,
            speedup: None,
            notes: Vec::new(),
            uncounted: None,
        };
        match self.dataset_name {
            Name::Random => Ok(self.random(plain)),
            Name::PrefixRepetition => self.prefix_repetition(plain),
            Name::Custom => {
                let (path, file) = self.file()?;
                let read = lines::read(file, endpoint).map_err(|error| wrong(path, &error))?;
                Ok(Chosen { dataset: Dataset::Lines(read.into()), described: Some(self.of_file(path)), ..plain })
            }
            Name::ShareGpt => {
                let (path, file) = self.file()?;
                let turns = sharegpt::read(file, num_prompts, seed).map_err(|error| wrong(path, &error))?;
                let fixed = self.sharegpt_output_len.or(self.output_len);
                // Which of them fit is known once the server has counted their tokens.
                let uncounted = Some((turns, fixed));
                Ok(Chosen { uncounted, told_output_len: fixed, described: Some(self.of_file(path)), ..plain })
            }
            Name::Trace | Name::TimedTrace => self.trace(plain),
            Name::Conversations => self.conversations(plain),
        }
    }

    fn random(&self, plain: Chosen) -> Chosen {
        let len = self.random_prefix_len.unwrap_or(0);
        let told_input_len = Some(plain.input_len.saturating_add(len));
        if len == 0 {
            // Not described: a report names a dataset only where it is not the plain one.
            return Chosen { told_input_len, ..plain };
        }
        Chosen {
            dataset: Dataset::Prefixes(Prefixes { len, count: 1 }),
            told_input_len,
            described: Some(format!("random behind {len} common tokens")),
            ..plain
        }
    }

    fn prefix_repetition(&self, plain: Chosen) -> Result<Chosen, String> {
        let len = self.prefix_repetition_prefix_len.unwrap_or(256);
        let input_len = self.prefix_repetition_suffix_len.unwrap_or(256);
        let count = self.prefix_repetition_num_prefixes.unwrap_or(10);
        let output_len = self.prefix_repetition_output_len.unwrap_or(plain.output_len);
        // A beginning with a prompt more than another would be warmer than it.
        let (num_prompts, notes) =
            shared_out(plain.num_prompts, count, "--prefix-repetition-num-prefixes", "beginning")?;
        let prefixes = Prefixes { len, count };
        Ok(Chosen {
            dataset: Dataset::Prefixes(prefixes),
            num_prompts,
            input_len,
            output_len,
            told_input_len: Some(len.saturating_add(input_len)),
            told_output_len: Some(output_len),
            described: Some(prefixes.to_string()),
            notes,
            ..plain
        })
    }

    fn trace(&self, plain: Chosen) -> Result<Chosen, String> {
        let (path, file) = self.file()?;
        let form = if self.dataset_name == Name::Trace { Form::MOONCAKE } else { Form::TIMED };
        let form = Form {
            seconds: self.timed_trace_sec_multiplier.unwrap_or(form.seconds),
            block: self.timed_trace_chunk_hash_size.unwrap_or(form.block),
        };
        let trace = trace::read(file, form, plain.num_prompts).map_err(|error| wrong(path, &error))?;
        Ok(Chosen {
            // A trace may be shorter than what was asked for.
            num_prompts: u32::try_from(trace.len()).unwrap_or(u32::MAX),
            dataset: Dataset::Trace(trace.into()),
            // Each line of a trace has lengths of its own.
            told_output_len: None,
            described: Some(self.of_file(path)),
            speedup: (!self.no_self_timed).then_some(self.trace_speedup.unwrap_or(1.0)),
            ..plain
        })
    }

    fn conversations(&self, plain: Chosen) -> Result<Chosen, String> {
        let think = Think {
            constant: self.conversations_think_time.unwrap_or_default(),
            mean: self.conversations_think_time_mean.unwrap_or_default(),
        };
        let shape = Conversations {
            turns: self.conversations_num_turns.unwrap_or(5),
            common_prefix_len: self.conversations_common_prefix_len.unwrap_or(0),
            prefix_len: self.conversations_prefix_len.unwrap_or(512),
            input_len: self.conversations_input_len.unwrap_or(128),
            think,
        };
        let output_len = self.conversations_output_len.unwrap_or(plain.output_len);
        let (num_prompts, notes) =
            shared_out(plain.num_prompts, shape.turns, "--conversations-num-turns", "turn of a conversation")?;
        let Conversations { turns, common_prefix_len, prefix_len, input_len, .. } = shape;
        Ok(Chosen {
            dataset: Dataset::Conversations(shape),
            num_prompts,
            output_len,
            told_output_len: Some(output_len),
            described: Some(format!(
                "conversations of {turns} turns, {common_prefix_len} common + {prefix_len} own + {input_len} tokens a turn, \
                 {} + {} to think; they begin at the rate",
                duration_text(think.constant),
                duration_text(think.mean)
            )),
            notes,
            ..plain
        })
    }

    /// The dataset and its file, in words.
    fn of_file(&self, path: &Path) -> String {
        let name = self.dataset_name.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        format!("{name} {}", path.file_name().unwrap_or(path.as_os_str()).display())
    }

    fn file(&self) -> Result<(&Path, BufReader<File>), String> {
        let Some(path) = self.dataset_path.as_deref() else {
            return Err("this dataset is in a file: name it with --dataset-path FILE".to_owned());
        };
        let file = File::open(path).map_err(|error| wrong(path, &error))?;
        Ok((path, BufReader::new(file)))
    }

    /// Refuses options of other datasets: a load that ignores what was asked for measures something else.
    fn go_together(&self) -> Result<(), String> {
        use Name::{Conversations, Custom, PrefixRepetition, Random, ShareGpt, TimedTrace, Trace};
        let traces = &[Trace, TimedTrace][..];
        let options: [(&str, bool, &[Name]); 20] = [
            ("--dataset-path", self.dataset_path.is_some(), &[Custom, ShareGpt, Trace, TimedTrace]),
            // A file has lengths of its own, and has always been read beside --input-len.
            ("--input-len", self.input_len.is_some(), &[Random, Custom]),
            ("--output-len", self.output_len.is_some(), &[Random, Custom, PrefixRepetition, ShareGpt, Conversations]),
            ("--random-prefix-len", self.random_prefix_len.is_some(), &[Random]),
            ("--prefix-repetition-prefix-len", self.prefix_repetition_prefix_len.is_some(), &[PrefixRepetition]),
            ("--prefix-repetition-suffix-len", self.prefix_repetition_suffix_len.is_some(), &[PrefixRepetition]),
            ("--prefix-repetition-num-prefixes", self.prefix_repetition_num_prefixes.is_some(), &[PrefixRepetition]),
            ("--prefix-repetition-output-len", self.prefix_repetition_output_len.is_some(), &[PrefixRepetition]),
            ("--sharegpt-output-len", self.sharegpt_output_len.is_some(), &[ShareGpt]),
            ("--timed-trace-chunk-hash-size", self.timed_trace_chunk_hash_size.is_some(), traces),
            ("--timed-trace-sec-multiplier", self.timed_trace_sec_multiplier.is_some(), traces),
            ("--trace-speedup", self.trace_speedup.is_some(), traces),
            ("--no-self-timed", self.no_self_timed, traces),
            ("--conversations-num-turns", self.conversations_num_turns.is_some(), &[Conversations]),
            ("--conversations-common-prefix-len", self.conversations_common_prefix_len.is_some(), &[Conversations]),
            ("--conversations-prefix-len", self.conversations_prefix_len.is_some(), &[Conversations]),
            ("--conversations-input-len", self.conversations_input_len.is_some(), &[Conversations]),
            ("--conversations-output-len", self.conversations_output_len.is_some(), &[Conversations]),
            ("--conversations-think-time", self.conversations_think_time.is_some(), &[Conversations]),
            ("--conversations-think-time-mean", self.conversations_think_time_mean.is_some(), &[Conversations]),
        ];
        let named = |name: &Name| name.to_possible_value().map_or_else(String::new, |one| one.get_name().to_owned());
        match options.iter().find(|(_, given, owners)| *given && !owners.contains(&self.dataset_name)) {
            None => Ok(()),
            Some((option, _, owners)) => Err(format!(
                "{option} does not go with --dataset-name {}; it is for {}",
                named(&self.dataset_name),
                owners.iter().map(named).collect::<Vec<_>>().join(", ")
            )),
        }
    }
}

fn wrong(path: &Path, error: &dyn Display) -> String {
    format!("--dataset-path {}: {error}", path.display())
}

/// Shares prompts out in equal parts: how many prompts that is in all, and a note where it is fewer than asked for.
fn shared_out(num_prompts: u32, parts: u32, option: &str, what: &str) -> Result<(u32, Vec<String>), String> {
    let whole = num_prompts - num_prompts % parts;
    if whole == 0 {
        return Err(format!(
            "--num-prompts {num_prompts} is less than {option} {parts}: it must be enough for one prompt for each {what}"
        ));
    }
    let note = format!("--num-prompts {num_prompts} is no multiple of {option} {parts}: {whole} prompts are sent");
    Ok((whole, if whole < num_prompts { vec![note] } else { Vec::new() }))
}

impl Chosen {
    /// Lets the server count what must be counted before prompts can be chosen.
    pub(super) async fn count(&mut self, client: &Client, base: &str, model: &str) -> Result<(), String> {
        let Some((turns, fixed)) = self.uncounted.take() else { return Ok(()) };
        let counted = client.sharegpt(base, model, turns, self.num_prompts, fixed).await;
        let (lines, how) = counted.map_err(|error| format!("cannot count the dataset's tokens: {error}"))?;
        if lines.is_empty() {
            return Err("no conversation of the dataset is 4 to 1024 tokens, and 2048 with its answer".to_owned());
        }
        if how != Counted::Tokenize {
            self.notes.push("the server has no /tokenize: lengths of prompts and answers are estimates".to_owned());
        }
        if lines.len() < self.num_prompts as usize {
            self.notes.push(format!("the dataset has {} prompts that fit: some are sent again", lines.len()));
        }
        self.dataset = Dataset::Lines(lines.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: DatasetArgs,
    }

    fn chosen(line: &str, num_prompts: u32) -> Result<Chosen, String> {
        let words = ["bench"].into_iter().chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).map_err(|error| error.to_string())?.args;
        args.chosen(num_prompts, Endpoint::Chat, 0)
    }

    fn refused(line: &str) -> String {
        chosen(line, 100).err().unwrap_or_else(|| panic!("{line} was accepted"))
    }

    #[test]
    fn defaults_are_those_of_vllm_bench_serve() {
        let random = chosen("", 1000).unwrap();
        assert!(matches!(random.dataset, Dataset::Random));
        assert_eq!((random.told_input_len, random.told_output_len, random.described), (Some(1024), Some(128), None));
        let repetition = chosen("--dataset-name prefix_repetition", 1005).unwrap();
        assert!(matches!(repetition.dataset, Dataset::Prefixes(Prefixes { len: 256, count: 10 })));
        assert_eq!((repetition.input_len, repetition.told_input_len, repetition.output_len), (256, Some(512), 128));
        assert_eq!((repetition.num_prompts, repetition.notes.len()), (1000, 1), "as many for each prefix, and said");
        let prefix = chosen("--random-prefix-len 96 --random-input-len 32", 10).unwrap();
        assert!(matches!(prefix.dataset, Dataset::Prefixes(Prefixes { len: 96, count: 1 })));
        assert_eq!((prefix.input_len, prefix.told_input_len), (32, Some(128)));
    }

    #[test]
    fn conversations_are_shaped_by_their_options() {
        let line =
            "--dataset-name conversations --conversations-num-turns 4 --conversations-think-time 2s --output-len 7";
        let chosen = chosen(line, 10).unwrap();
        let Dataset::Conversations(shape) = chosen.dataset else { panic!("conversations") };
        assert_eq!((shape.turns, shape.prefix_len, shape.input_len, chosen.output_len), (4, 512, 128, 7));
        assert_eq!((shape.think.constant, shape.think.mean), (Duration::from_secs(2), Duration::ZERO));
        assert_eq!(chosen.num_prompts, 8);
    }

    #[test]
    fn options_of_another_dataset_are_refused_with_their_own() {
        for (line, words) in [
            (
                "--prefix-repetition-num-prefixes 3",
                "does not go with --dataset-name random; it is for prefix_repetition",
            ),
            ("--dataset-path x", "it is for custom, sharegpt, trace, timed_trace"),
            ("--dataset-name prefix_repetition --input-len 5", "--input-len does not go with"),
            ("--dataset-name trace --output-len 5", "--output-len does not go with"),
            ("--dataset-name conversations --no-self-timed", "it is for trace, timed_trace"),
            ("--dataset jsonl", "--dataset-path FILE"),
            ("--dataset-name sharegpt", "--dataset-path FILE"),
            ("--dataset-name trace", "--dataset-path FILE"),
            ("--dataset-name trace --dataset-path /nothing/there", "--dataset-path /nothing/there: No such file"),
            ("--dataset-name conversations --conversations-num-turns 101", "--num-prompts 100 is less than"),
            ("--dataset-name prefix_repetition --prefix-repetition-num-prefixes 101", "one prompt for each beginning"),
            ("--dataset-name trace --trace-speedup inf", "a finite number above 0"),
            ("--dataset-name trace --timed-trace-sec-multiplier nan", "a finite number above 0"),
            ("--input-len 0", "from 1 to 10000000"),
            ("--dataset-name poems", "prefix_repetition"),
        ] {
            assert!(refused(line).contains(words), "{line}: {}", refused(line));
        }
    }

    #[test]
    fn a_trace_has_times_of_its_own_unless_they_are_to_be_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.jsonl");
        std::fs::write(
            &path,
            "{\"timestamp\": 0, \"input_length\": 40, \"output_length\": 2, \"hash_ids\": [1, 2, 3]}\n",
        )
        .unwrap();
        let at = |line: &str| chosen(&format!("{line} --dataset-path {}", path.display()), 1000);
        let timed = at("--dataset-name timed_trace --trace-speedup 4").unwrap();
        assert_eq!((timed.speedup, timed.num_prompts), (Some(4.0), 1));
        assert_eq!(timed.described.as_deref(), Some("timed_trace trace.jsonl"));
        assert_eq!(at("--dataset-name timed_trace --no-self-timed").unwrap().speedup, None);
        let said = at("--dataset-name trace").err().unwrap();
        assert!(said.contains("line 1: input_length 40 is 1 blocks of 512"), "{said}");
    }
}

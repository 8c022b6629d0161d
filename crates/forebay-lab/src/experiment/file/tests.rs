//! What is taken and what is refused.

use super::*;

const SERVERS: &str = "[[servers]]\nname = \"one\"\nurl = \"http://127.0.0.1:1001\"\ncommand = \"serve '${DIR}/m' --x\"\n\
                       env = { GPU = \"0\" }\nor_else = [\"--plain\"]\n\
                       [[servers]]\nname = \"two\"\nurl = \"http://127.0.0.1:1002\"\ncommand = [\"serve\", \"a b\"]\nafter = [\"one\"]\n";
const LOAD: &str = "[load]\nnum_prompts = 3\ninput_len = 10\noutput_len = 20\n";

fn env(name: &str) -> Option<String> {
    (name == "DIR").then(|| "/models here".to_owned())
}

fn of(text: &str) -> Result<Experiment, Vec<String>> {
    read(Path::new("x.toml"), text, &env).map_err(|report| report.lines())
}

fn wrong(text: &str) -> String {
    of(text).unwrap_err().join("\n")
}

#[test]
fn a_whole_experiment_is_read() {
    let text = format!(
        "name = \"x\"\nmodel = \"m\"\nenv = {{ ALL = \"1\", GPU = \"none\" }}\n{LOAD}sweep = {{ request_rate = [1, 2.5] }}\n\
         [slo]\nttft = \"2s\"\n{SERVERS}\
         [[arms]]\nname = \"a\"\nservers = [\"one\"]\n\
         [[arms]]\nname = \"b\"\nservers = [\"one\", \"two\"]\nstarts = 1\n"
    );
    let experiment = of(&text).unwrap();
    let [one, two] = &experiment.servers[..] else { panic!("two servers") };
    assert_eq!(one.command, ["serve", "/models here/m", "--x"]);
    assert_eq!((two.command.as_slice(), two.after.as_slice()), (&["serve".to_owned(), "a b".to_owned()][..], &[0][..]));
    assert_eq!(one.env.last(), Some(&("GPU".to_owned(), "0".to_owned())), "the server's own comes last and holds");
    assert_eq!(
        experiment.loads.iter().map(|load| load.offered).collect::<Vec<_>>(),
        [Offered::Rate(1.0), Offered::Rate(2.5)]
    );
    assert_eq!(experiment.arms[0].route, Route::Direct);
    assert_eq!(experiment.arms[1].route, Route::Forebay(PolicyName::PredictedTtft));
    assert_eq!((experiment.arms[1].gpus, experiment.arms[1].starts), (2, 1));
    assert_eq!(experiment.out, Path::new("experiments/x"));
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let text = format!(
        "name = \"x\"\nmodle = \"m\"\n{LOAD}warmup = 3\n{SERVERS}\
         [[arms]]\nname = \"a\"\nservers = [\"oen\"]\n\
         [[arms]]\nname = \"a\"\nservers = [\"one\", \"two\"]\nroute = \"direct\"\n"
    );
    let told = wrong(&text);
    for part in [
        "x.toml:2:1: unknown key `modle`; did you mean `model`?",
        "model is missing; add model = …",
        "x.toml:7:1: unknown key `warmup` in [load]; did you mean `warm_up`?",
        "arms.servers: no server `oen` stands above; did you mean \"one\"?",
        "arms.name: `a` is named twice",
        "arms.route: nothing shares the load out between the servers",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
}

#[test]
fn a_variable_that_is_not_set_is_named_and_servers_of_a_stage_have_their_own_ports() {
    let text = format!(
        "name = \"x\"\nmodel = \"m\"\n{LOAD}[[servers]]\nname = \"one\"\nurl = \"http://127.0.0.1:1001\"\n\
         command = \"${{NOPE}} serve\"\n[[servers]]\nname = \"two\"\nurl = \"http://127.0.0.1:1001\"\ncommand = \"x\"\n\
         [[arms]]\nname = \"a\"\nservers = [\"one\", \"two\"]\n"
    );
    let told = wrong(&text);
    assert!(told.contains("servers.command: the environment variable NOPE is not set; export NOPE=…"), "{told}");
    assert!(told.contains("arms.servers: `one` and `two` are up together at http://127.0.0.1:1001"), "{told}");
}

#[test]
fn an_empty_file_is_told_what_it_lacks() {
    let told = wrong("");
    for part in ["name is missing", "model is missing", "no load", "no servers", "no arms"] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
}

#[test]
fn prompts_of_a_load_may_share_beginnings() {
    let arms = "[[arms]]\nname = \"a\"\nservers = [\"one\"]\n";
    let with = |keys: &str| {
        of(&format!("name = \"x\"\nmodel = \"m\"\n{LOAD}prefix_repetition = {{ {keys} }}\n{SERVERS}{arms}"))
    };
    let load = with("prefix_len = 2048, num_prefixes = 3").unwrap().loads.remove(0);
    assert_eq!((load.prefixes, load.input_len), (Some(Prefixes { len: 2048, count: 3 }), 10));
    let told = with("num_prefixes = 4").unwrap_err().join("\n");
    assert!(told.contains("4 prefixes for 3 prompts; each prefix needs a prompt"), "{told}");
    assert!(with("prefix_len = 0").is_err() && with("length = 3").is_err());
}

/// A whole file with `line` in one section. Sections that need not be there are there for the line alone.
fn with(section: &str, line: &str) -> String {
    let at = |name: &str| if name == section { format!("{line}\n") } else { String::new() };
    let within = |name: &str| if name == section { format!("[{name}]\n{line}\n") } else { String::new() };
    let server = |name: &str, port: u32| {
        format!("[[servers]]\nname = \"{name}\"\nurl = \"http://127.0.0.1:{port}\"\ncommand = \"serve\"\n")
    };
    [
        format!("name = \"x\"\nmodel = \"m\"\n{}", at("")),
        format!("[load]\nnum_prompts = 100\ninput_len = 10\noutput_len = 20\n{}", at("load")),
        ["load.sweep", "load.prefix_repetition", "load.warm_up", "slo"].map(within).concat(),
        server("two", 1002) + &server("one", 1001) + &at("servers"),
        format!("[[arms]]\nname = \"a\"\nservers = [\"one\", \"two\"]\n{}", at("arms")),
    ]
    .concat()
}

/// The rows of the document by section: key, what it takes, its default.
fn documented() -> Vec<(String, Vec<[String; 3]>)> {
    let document = include_str!("../../../../../docs/compare.md");
    let part = document.split_once("### Keys of an experiment file\n").unwrap().1.split_once("\n## ").unwrap().0;
    let mut sections = Vec::new();
    for line in part.lines().filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<&str> = line.trim_end_matches('|').split(" | ").map(str::trim).collect();
        if let Some(rest) = cells[0].strip_prefix("key") {
            let name = rest.trim_start_matches(" in ").trim_matches(['`', '[', ']']);
            sections.push((name.to_owned(), Vec::new()));
        } else {
            let key = cells[0].trim_matches(['`', '[', ']']).to_owned();
            assert!(cells.len() == 4 && !cells[3].is_empty(), "{line}");
            sections.last_mut().unwrap().1.push([key, cells[1].to_owned(), cells[2].to_owned()]);
        }
    }
    sections
}

#[test]
fn the_document_has_every_key_with_its_default_and_its_range() {
    let documented = documented();
    let names = |keys: &[[String; 3]]| keys.iter().map(|[key, ..]| key.clone()).collect::<Vec<_>>();
    assert_eq!(documented.len(), schema::SCHEMA.sections.len());
    for section in schema::SCHEMA.sections {
        let (_, keys) = documented.iter().find(|(name, _)| name == section.name).expect(section.name);
        let (mut told, mut known) =
            (names(keys), section.keys.iter().map(|key| key.name.to_owned()).collect::<Vec<_>>());
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known, "the keys of {}", section.head);
        let without = || of(&with(section.name, "")).map(|experiment| format!("{experiment:?}"));
        for [key, takes, default] in keys {
            let place = format!("{key} in {}", section.head);
            if default == "required" {
                let whole = with(section.name, "");
                let rest = whole.lines().filter(|line| !line.starts_with(&format!("{key} ="))).collect::<Vec<_>>();
                let is_table = ["load", "servers", "arms"].contains(&key.as_str());
                assert!(is_table || of(&rest.join("\n")).is_err(), "{place} is not required");
            } else if let Some(value) = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'))
                // What the default depends on is said in words.
                && !value.contains('`')
            {
                let said = of(&with(section.name, &format!("{key} = {}", value.replace("NAME", "x"))));
                assert_eq!(said.map(|experiment| format!("{experiment:?}")), without(), "the default of {place}");
            }
            // Just above the range is refused, and its end is not.
            if let Some((_, end)) = takes.split_once(" to ").filter(|_| default != "required") {
                let end: u64 = end.replace(',', "").parse().expect(&place);
                let refused = |value| wrong_of(&with(section.name, &format!("{key} = {value}"))).contains("is not");
                assert!(!refused(end) && refused(end + 1), "the range of {place}");
            }
        }
    }
}

/// The mistakes of a file, of which there may be none.
fn wrong_of(text: &str) -> String {
    of(text).err().unwrap_or_default().join("\n")
}

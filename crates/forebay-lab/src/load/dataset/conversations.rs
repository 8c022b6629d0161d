//! The `conversations` dataset: what is said in each turn, and how long a person thinks before it. A prompt repeats all
//! earlier prompts and the answers that the server really gave. Pure and seeded.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::vocabulary::{Prompt, Vocabulary};
use crate::load::workload::{Endpoint, Workload};

/// Keys of the texts: the common part, then a range for each conversation.
const COMMON: u64 = u64::MAX;

/// The shape of conversations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conversations {
    /// Prompts of a conversation, at least 1.
    pub turns: u32,
    /// Tokens that the first prompts of all conversations begin with.
    pub common_prefix_len: u32,
    /// Tokens that follow in a first prompt, a conversation's own.
    pub prefix_len: u32,
    /// New tokens of each prompt, the first included; at least 1.
    pub input_len: u32,
    /// The time between an answer and the next prompt.
    pub think: Think,
}

/// The time between an answer and the next prompt: a constant and an exponentially distributed part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Think {
    /// The constant part.
    pub constant: Duration,
    /// The mean of the exponential part.
    pub mean: Duration,
}

impl Think {
    /// Draws a time to think.
    #[must_use]
    pub fn draw(&self, rng: &mut fastrand::Rng) -> Duration {
        // 1 − f64() is never 0, so its logarithm is finite.
        self.constant.saturating_add(self.mean.mul_f64(-(1.0 - rng.f64()).ln()))
    }
}

/// Conversations that are about to be held.
#[derive(Clone, Debug)]
pub struct Script {
    /// Their shape.
    pub shape: Conversations,
    /// The words that prompts are written with.
    pub vocabulary: Vocabulary,
    /// The rest of each body. Its `num_prompts` counts the prompts of all conversations.
    pub workload: Workload,
    /// The speed at which people think, as a multiple of the description's: more than 1 for simulated servers.
    pub time_scale: f64,
}

impl Script {
    /// Returns how many conversations there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.workload.num_prompts / self.shape.turns.max(1)
    }

    /// Returns when each conversation begins.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Duration> {
        Workload { num_prompts: self.count(), ..self.workload.clone() }.arrivals()
    }

    /// Returns what is new in a prompt.
    #[must_use]
    pub fn prompt(&self, conversation: u32, turn: u32) -> String {
        let (shape, seed) = (&self.shape, self.workload.seed);
        let mut prompt = Prompt::Text(String::new());
        // Turns take even numbers, so that the odd one beside the first turn's is free for the conversation's prefix.
        let own = u64::from(conversation) << 32 | u64::from(turn) << 1;
        if turn == 0 {
            self.vocabulary.add(&mut prompt, (seed, COMMON), shape.common_prefix_len);
            self.vocabulary.add(&mut prompt, (seed, own | 1), shape.prefix_len);
        }
        self.vocabulary.add(&mut prompt, (seed, own), shape.input_len);
        match prompt {
            Prompt::Text(text) => text,
            Prompt::Ids(_) => unreachable!("it began as text"),
        }
    }

    /// Returns how long to wait before a turn, by the clock.
    #[must_use]
    pub fn think(&self, conversation: u32, turn: u32) -> Duration {
        let key = u64::from(conversation) << 32 | u64::from(turn);
        // Drawn for this turn alone: a series that all turns shared would depend on the order in which answers came.
        let mut rng = fastrand::Rng::with_seed(self.workload.seed ^ key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7417);
        self.shape.think.draw(&mut rng).div_f64(self.time_scale)
    }
}

/// The messages of one conversation so far.
#[derive(Clone, Debug)]
pub struct History {
    endpoint: Endpoint,
    messages: Vec<Value>,
    text: String,
}

impl History {
    /// Returns the history of a conversation that has not begun.
    #[must_use]
    pub fn of(endpoint: Endpoint) -> History {
        History { endpoint, messages: Vec::new(), text: String::new() }
    }

    /// Adds a prompt.
    pub fn ask(&mut self, prompt: &str) {
        self.say("user", prompt);
    }

    /// Adds the server's answer.
    pub fn answer(&mut self, answer: &str) {
        self.say("assistant", answer);
    }

    fn say(&mut self, role: &str, text: &str) {
        match self.endpoint {
            Endpoint::Chat => self.messages.push(json!({"role": role, "content": text})),
            Endpoint::Completions => self.text.push_str(text),
        }
    }

    /// Returns the body of a request with all that was said.
    #[must_use]
    pub fn body(&self, workload: &Workload) -> Bytes {
        let body = match self.endpoint {
            Endpoint::Chat => workload.body_of("messages", Value::from(self.messages.clone())),
            Endpoint::Completions => workload.body_of("prompt", Value::from(self.text.as_str())),
        };
        Bytes::from(body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Rate;
    use crate::load::workload::tests::workload;

    fn script() -> Script {
        let think = Think { constant: Duration::from_secs(1), mean: Duration::from_secs(4) };
        Script {
            shape: Conversations { turns: 3, common_prefix_len: 20, prefix_len: 30, input_len: 40, think },
            vocabulary: Vocabulary::of_all_words(),
            workload: Workload { num_prompts: 3000, ..workload(Rate::PerSecond(5.0)) },
            time_scale: 1.0,
        }
    }

    #[test]
    fn first_prompts_share_the_common_tokens_and_no_more() {
        let script = script();
        let words = |conversation, turn| -> Vec<String> {
            script.prompt(conversation, turn).split_whitespace().map(str::to_owned).collect()
        };
        let (a, b) = (words(0, 0), words(1, 0));
        assert_eq!((a.len(), words(0, 1).len()), (90, 40));
        assert_eq!(a[..20], b[..20]);
        assert_ne!(a[20..30], b[20..30]);
        assert_ne!(words(0, 1), words(0, 2));
    }

    #[test]
    fn conversations_begin_at_the_rate_and_think_times_have_their_mean() {
        let script = script();
        let times = script.arrivals();
        assert_eq!((script.count(), times.len()), (1000, 1000));
        assert!((times[999].as_secs_f64() - 999.0 / 5.0).abs() < 1e-6);
        let thoughts: Vec<f64> = (0..1000).map(|one| script.think(one, 1).as_secs_f64()).collect();
        let mean = thoughts.iter().sum::<f64>() / 1000.0;
        assert!((mean - 5.0).abs() < 0.5 && thoughts.iter().all(|one| *one >= 1.0), "{mean}");
        let fast = Script { time_scale: 10.0, ..script.clone() };
        assert!((fast.think(3, 1).as_secs_f64() * 10.0 - thoughts[3]).abs() < 1e-6);
    }

    #[test]
    fn a_body_has_all_that_was_said_in_order() {
        let load = workload(Rate::Unlimited);
        let mut chat = History::of(Endpoint::Chat);
        let mut plain = History::of(Endpoint::Completions);
        for history in [&mut chat, &mut plain] {
            history.ask(" one");
            history.answer(" two");
            history.ask(" three");
        }
        let chat: Value = serde_json::from_slice(&chat.body(&load)).unwrap();
        let said: Vec<_> =
            chat["messages"].as_array().unwrap().iter().map(|one| (&one["role"], &one["content"])).collect();
        let (user, assistant) = (json!("user"), json!("assistant"));
        assert_eq!(said, [(&user, &json!(" one")), (&assistant, &json!(" two")), (&user, &json!(" three"))]);
        let load = Workload { endpoint: Endpoint::Completions, ..load };
        let plain: Value = serde_json::from_slice(&plain.body(&load)).unwrap();
        assert_eq!(plain["prompt"], " one two three");
    }
}

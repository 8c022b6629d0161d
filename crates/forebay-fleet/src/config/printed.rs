//! A configuration as a file that says everything: each key with the value in force, its default and what it takes. What
//! [`load`](super::load) makes of it is the same configuration. Secrets stay where they are: the file names them as before.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

use super::model::{Config, PoolConfig};
use super::schema::SCHEMA;
use forebay_core::toml_reader::{DefaultText, Key, Keys, Reload, Section};

/// The width of a comment.
const WIDTH: usize = 80;

/// The file as it was written, for what the configuration does not keep: the names of files and variables with secrets.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Its text; empty where there is no file.
    pub text: &'a str,
    /// The folder that its paths are relative to.
    pub folder: &'a Path,
}

/// Returns `config` as the text of a file. `written`: the file that it was made of.
#[must_use]
pub fn printed(config: &Config, written: Written<'_>) -> String {
    // What is in force was read from this text, or there is none: it has no mistakes.
    let (document, _) = DeTable::parse_recoverable(written.text);
    let mut printer = Printer { text: String::new(), folder: written.folder };
    let shown = serde_json::to_value(config).expect("a configuration has string keys and plain values");
    let whole = |section: &&&Section| {
        section.head.starts_with('[') && !section.head.starts_with("[[") && !section.name.contains('.')
    };
    for section in SCHEMA.sections.iter().filter(whole) {
        let raw = table(Some(document.get_ref()), section.name);
        printer.section(section, &shown[section.name], raw);
        if section.name == "clients" {
            let keys = tables(raw, "keys");
            // Without a table there is nothing to be in force, and its keys are still to be found here.
            if keys.is_empty() {
                named("clients.keys").into_iter().for_each(|section| printer.not_set(section));
            }
            for raw in keys {
                printer.list_item("clients.keys", &Json::Null, Some(raw));
            }
        }
    }
    for (pool, shown) in config.pools.iter().zip(shown["pools"].as_array().into_iter().flatten()) {
        let raw = tables(Some(document.get_ref()), "pools")
            .into_iter()
            .find(|raw| raw.get("model").and_then(|model| model.get_ref().as_str()) == Some(&pool.model));
        printer.pool(shown, raw);
    }
    printer.text
}

/// The text so far.
struct Printer<'a> {
    text: String,
    folder: &'a Path,
}

// Writing into a String does not fail, here and below.
impl Printer<'_> {
    /// A section under its head, and the sections within it after its own keys, as TOML wants it.
    fn section(&mut self, section: &Section, shown: &Json, raw: Option<&DeTable<'_>>) {
        _ = writeln!(self.text, "\n[{}]", section.name);
        self.keys(section, shown, raw);
        self.within(section, shown, raw);
    }

    fn list_item(&mut self, name: &str, shown: &Json, raw: Option<&DeTable<'_>>) {
        let Some(section) = named(name) else { return };
        _ = writeln!(self.text, "\n[[{name}]]");
        self.keys(section, shown, raw);
        self.within(section, shown, raw);
    }

    fn pool(&mut self, shown: &Json, raw: Option<&DeTable<'_>>) {
        self.list_item(PoolConfig::SECTION.name, shown, raw);
        for arm in shown["arms"].as_array().into_iter().flatten() {
            // A pool without arms is written as its one arm, with what the pool has.
            self.list_item("pools.arms", arm, raw_arm(raw, arm).or(raw));
            // A source stands in place of a list, and is among the arm's keys.
            if arm["discover"].is_null() {
                self.backends(arm, raw);
            }
        }
    }

    /// The backends of an arm, which are inline tables of few keys.
    fn backends(&mut self, arm: &Json, raw_pool: Option<&DeTable<'_>>) {
        let Some(section) = named("backends") else { return };
        for key in section.keys {
            self.comment("# ", &format!("{}: {}", key.name, told(key)));
        }
        self.text.push_str("backends = [\n");
        for backend in arm["backends"].as_array().into_iter().flatten() {
            let raw = raw_backend(raw_pool, backend["url"].as_str().unwrap_or_default());
            // A key without a value is left out: its comment above says what it would be.
            let values = section.keys.iter().filter_map(|key| {
                Some(format!("{} = {}", key.name, self.value(key, &backend[key.name], get(raw, key.name))?))
            });
            let line = values.collect::<Vec<_>>().join(", ");
            _ = writeln!(self.text, "  {{ {line} }},");
        }
        self.text.push_str("]\n");
    }

    fn keys(&mut self, section: &Section, shown: &Json, raw: Option<&DeTable<'_>>) {
        for key in section.keys.iter().filter(|key| !is_apart(section, key)) {
            self.comment("# ", &told(key));
            // GPUs that are not written follow what is found, and a number would end that.
            let follows = key.name == "gpus" && shown["discover"].is_object() && get(raw, "gpus").is_none();
            let value = if follows { None } else { self.value(key, &shown[key.name], get(raw, key.name)) };
            _ = match value {
                Some(value) => writeln!(self.text, "{} = {value}", key.name),
                None => writeln!(self.text, "# {} is not set", key.name),
            };
        }
    }

    /// The sections within `section` that are in force.
    fn within(&mut self, section: &Section, shown: &Json, raw: Option<&DeTable<'_>>) {
        // After the keys of the section itself: in TOML what follows a head belongs to it.
        for key in section.keys {
            let name = format!("{}.{}", section.name, key.name);
            match (named(&name), &shown[key.name]) {
                (Some(inner), Json::Object(_)) => self.section(inner, &shown[key.name], table(raw, key.name)),
                (Some(inner), _) if !inner.head.starts_with('[') => self.not_set(inner),
                _ => {}
            }
        }
    }

    /// The keys of a section that is not in force, as comments.
    fn not_set(&mut self, section: &Section) {
        _ = writeln!(self.text, "\n# {} is not set. Its keys:", section.name);
        for key in section.keys {
            self.comment("#   ", &format!("{}: {}", key.name, told(key)));
        }
        for inner in section.keys.iter().filter_map(|key| named(&format!("{}.{}", section.name, key.name))) {
            self.not_set(inner);
        }
    }

    /// Words as comments, on lines that a terminal holds.
    fn comment(&mut self, mark: &str, words: &str) {
        let mut line = mark.to_owned();
        for word in words.split_whitespace() {
            let begun = line.len() > mark.len();
            if begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
                _ = writeln!(self.text, "{line}");
                line = format!("{mark}  {word}");
            } else {
                line.push_str(if begun { " " } else { "" });
                line.push_str(word);
            }
        }
        _ = writeln!(self.text, "{line}");
    }

    /// The value in force: as the configuration has it, or, where that shows none, as it is written.
    fn value(&self, key: &Key, shown: &Json, raw: Option<&DeValue<'_>>) -> Option<String> {
        // Paths are relative to the file that names them, and the printed one may be put anywhere.
        let is_path = key.name.ends_with("_file") || key.name == "file";
        match (shown, raw) {
            (Json::String(text), _) if text != "[redacted]" && is_path => Some(self.path(text)),
            (Json::String(text), _) if text == "[redacted]" => raw.map(|raw| toml_of(raw)),
            (Json::Null | Json::Object(_), Some(DeValue::String(text))) if is_path => Some(self.path(text)),
            (Json::Null | Json::Object(_), Some(raw)) => Some(self.inline(raw)),
            (Json::Null | Json::Object(_), None) => None,
            (shown, _) => Some(toml_of_json(shown)),
        }
    }

    /// The value as it is written, with the paths in inline tables as they hold everywhere.
    fn inline(&self, written: &DeValue<'_>) -> String {
        let Some(table) = written.as_table() else { return toml_of(written) };
        let pairs = table.iter().map(|(key, value)| {
            let key: &std::borrow::Cow<'_, str> = key.get_ref();
            let value = match value.get_ref() {
                DeValue::String(text) if key.ends_with("_file") => self.path(text),
                other => self.inline(other),
            };
            format!("{} = {value}", quoted(key))
        });
        format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
    }

    /// A path that holds wherever the printed file is put.
    fn path(&self, text: &str) -> String {
        // "off" is a word of some keys that take paths.
        let whole = if text == "off" { text.to_owned() } else { self.folder.join(text).display().to_string() };
        quoted(&whole)
    }
}

/// `duration, 1ms to 30days; default "10s"; needs a restart`.
fn told(key: &Key) -> String {
    let default = match (key.default)() {
        DefaultText::Written(value) => format!("default {value}"),
        DefaultText::Words("required") => "required".to_owned(),
        DefaultText::Words(words) => format!("default: {words}"),
    };
    let reload = match key.reload {
        Reload::AtOnce => "",
        Reload::Restart => "; needs a restart",
    };
    format!("{}; {default}{reload}", (key.takes)()).replace('`', "").replace('\n', " ")
}

fn named(name: &str) -> Option<&'static Section> {
    SCHEMA.sections.iter().copied().find(|section| section.name == name)
}

/// Returns whether a key has a section of its own, or is a list of tables.
fn is_apart(section: &Section, key: &Key) -> bool {
    let inner = format!("{}.{}", section.name, key.name);
    named(&inner).is_some() || (key.name == "backends" && matches!(section.name, "pools" | "pools.arms"))
}

fn get<'a>(table: Option<&'a DeTable<'a>>, key: &str) -> Option<&'a DeValue<'a>> {
    Some(table?.get(key)?.get_ref())
}

fn table<'a>(within: Option<&'a DeTable<'a>>, key: &str) -> Option<&'a DeTable<'a>> {
    get(within, key)?.as_table()
}

fn tables<'a>(within: Option<&'a DeTable<'a>>, key: &str) -> Vec<&'a DeTable<'a>> {
    let items = get(within, key).and_then(DeValue::as_array);
    items.into_iter().flatten().filter_map(|item| item.get_ref().as_table()).collect()
}

/// The arm as it is written, if the pool has arms.
fn raw_arm<'a>(pool: Option<&'a DeTable<'a>>, arm: &Json) -> Option<&'a DeTable<'a>> {
    let named = |raw: &&DeTable<'a>| get(Some(raw), "name").and_then(DeValue::as_str) == arm["name"].as_str();
    tables(pool, "arms").into_iter().find(named)
}

/// The backend as it is written: a pool has each URL once.
fn raw_backend<'a>(pool: Option<&'a DeTable<'a>>, url: &str) -> Option<&'a DeTable<'a>> {
    let of_arms = tables(pool, "arms").into_iter().flat_map(|arm| tables(Some(arm), "backends"));
    // The reader may write a URL shorter than the file does.
    let same = |text: &str| text.parse::<super::model::BackendUrl>().is_ok_and(|read| read.to_string() == url);
    let mut all = tables(pool, "backends").into_iter().chain(of_arms);
    all.find(|raw| get(Some(raw), "url").and_then(DeValue::as_str).is_some_and(same))
}

/// A text as TOML has it. JSON's escapes are TOML's, but for one character that JSON leaves as it is.
fn quoted(text: &str) -> String {
    Json::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn toml_of(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            format!("[{}]", items.iter().map(|item| toml_of(item.get_ref())).collect::<Vec<_>>().join(", "))
        }
        DeValue::Table(table) => {
            let pair = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                let key: &std::borrow::Cow<'_, str> = key.get_ref();
                format!("{} = {}", quoted(key), toml_of(value.get_ref()))
            };
            format!("{{ {} }}", table.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

fn toml_of_json(value: &Json) -> String {
    match value {
        Json::String(text) => quoted(text),
        Json::Array(items) => format!("[{}]", items.iter().map(toml_of_json).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::load_text;
    use super::*;

    const FOLDER: &str = "/etc/forebay";

    fn read(text: &str) -> Config {
        let env = |name: &str| (name == "VLLM_KEY").then(|| "sk-secret".to_owned());
        let loaded = load_text(Path::new("/etc/forebay/f.toml"), text, &env);
        loaded.unwrap_or_else(|report| panic!("{}\n{text}", report.render(false))).config
    }

    fn print(text: &str) -> String {
        printed(&read(text), Written { text, folder: Path::new(FOLDER) })
    }

    const POOL: &str = "[[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://a\" }]\n";

    const SOURCES: &str = "[replicas]\ncount = 2\n[[pools]]\nmodel = \"m\"\nsplit_salt = \"s\"\n[[pools.arms]]\nname = \"x\"\n\
                           discover = { kubernetes = { selector = \"app=vllm\", port = 8000 } }\n[[pools.arms]]\nname = \"y\"\n\
                           discover = { dns = \"vllm.example:8000\", interval = \"2s\" }\n[[pools.arms]]\nname = \"z\"\n\
                           discover = { inference_pool = \"m\", kubernetes = { namespace = \"n\" } }\n";

    #[test]
    fn what_is_printed_is_read_back_as_the_same_configuration() {
        let arms = "[[pools]]\nmodel = \"m\"\naliases = [\"a \\\"b\\\"\", \"ü\"]\nsession = { body = \"user\" }\nsplit_salt = \"s\"\n\
                    wait_room = { size = 3 }\n[[pools.arms]]\nname = \"x\"\nshare = 2.5\ngpus = 2\n\
                    backends = [{ url = \"http://A:80/\", key_env = \"VLLM_KEY\", drain = true }]\n\
                    [[pools.arms]]\nname = \"y\"\nshare = 1\nbackends = [{ url = \"unix:/run/x.sock\", speed = 1.5 }]\n\
                    [[pools]]\nmodel = \"n\"\nbackends = [{ url = \"https://b\" }]\nunknown_models = \"try\"\n";
        let keys = "[listen]\naddress = \"0.0.0.0:80\"\ndrain = { limit = \"5m\" }\nkeep_alive = \"off\"\n[limits]\nbody = \"1MiB\"\n\
                    [cors]\norigins = [\"https://a.example\"]\n[forwarding]\ntrusted_proxies = [\"10.0.0.0/8\"]\n\
                    [[clients.keys]]\nname = \"ci\"\nkey_env = \"VLLM_KEY\"\nrequests_per_minute = 60\nmodels = [\"m\"]\n";
        for text in [POOL.to_owned(), SOURCES.to_owned(), arms.to_owned(), format!("{keys}{arms}")] {
            let shown = print(&text);
            assert_eq!(read(&shown), read(&text), "{shown}");
            assert!(!shown.contains("sk-secret") && !shown.contains("redacted"), "{shown}");
        }
    }

    #[test]
    fn every_key_is_there_with_what_it_takes_and_its_default() {
        // A source of backends stands in place of a list, so it is not in the same file.
        let shown = print(POOL) + &print(SOURCES);
        for section in SCHEMA.sections.iter().filter(|section| section.name != "clients.keys") {
            for key in section.keys.iter().filter(|key| !key.full.is_empty() && !section.name.is_empty()) {
                assert!(shown.contains(key.name), "{} is not in\n{shown}", key.full);
            }
        }
        assert!(
            shown.contains("# duration, 1ms to 30days; default \"75s\"") || shown.contains("default \"1m15s\""),
            "{shown}"
        );
    }
}

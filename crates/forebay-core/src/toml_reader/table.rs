//! The file as it is written: tables and values, each with its place. Asking for a value reads it, and a value that is
//! wrong is noted and replaced by its default, so that one reading finds every mistake. Never decides what a value means.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::diagnostic::{Diagnostic, Notes, quoted};
use super::section::{Schema, Section};

/// A table of the file, or the absence of one, which reads as an empty table.
#[derive(Clone, Debug)]
pub struct Table<'a> {
    table: Option<&'a DeTable<'a>>,
    span: Option<Range<usize>>,
    schema: &'static Schema,
    section: &'static Section,
    notes: &'a Notes,
    /// Keys whose value was wrong.
    wrong: RefCell<Vec<&'static str>>,
}

/// A value of the file.
#[derive(Debug)]
pub struct Value<'a> {
    /// The value itself.
    pub value: &'a DeValue<'a>,
    /// Its place.
    pub span: Range<usize>,
}

/// Reason why a value is not accepted.
#[derive(Debug)]
pub struct Wrong {
    /// The reason, without the key.
    pub reason: String,
    /// A text that says what would be right.
    pub hint: Option<String>,
    /// The place, where it is a part of the value.
    pub(super) at: Option<Range<usize>>,
    /// Further parts of the value that are wrong.
    pub(super) more: Vec<Wrong>,
}

/// A value that was asked for, or its default.
#[derive(Clone, Debug)]
pub struct Got<T> {
    /// The value; the default where the file has none or a wrong one.
    pub value: T,
    /// Its place, if it is.
    pub span: Option<Range<usize>>,
    /// It is written and wrong, which has been noted: nothing more should be said about it.
    pub wrong: bool,
}

impl Wrong {
    /// A reason alone.
    pub fn because(reason: impl Into<String>) -> Wrong {
        Wrong { reason: reason.into(), hint: None, at: None, more: Vec::new() }
    }

    /// Sets the place of the part that is wrong.
    #[must_use]
    pub fn at(mut self, part: Range<usize>) -> Wrong {
        self.at = Some(part);
        self
    }

    /// Several parts of one value that are wrong; `None` where there is none.
    #[must_use]
    pub fn all(parts: Vec<Wrong>) -> Option<Wrong> {
        let mut parts = parts.into_iter();
        parts.next().map(|first| Wrong { more: parts.collect(), ..first })
    }

    /// Adds what would be right.
    pub fn hint(mut self, hint: impl Into<String>) -> Wrong {
        self.hint = Some(hint.into());
        self
    }
}

impl Value<'_> {
    /// The kind of value, with its article.
    pub fn kind(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        }
    }

    /// The value is of another kind than `wanted`.
    pub fn expected(&self, wanted: &str) -> Wrong {
        Wrong::because(format!("expected {wanted}, found {}", self.kind()))
    }
}

impl<'a> Table<'a> {
    /// The whole file, whose keys are those of `schema`.
    pub fn root(document: &'a DeTable<'a>, schema: &'static Schema, notes: &'a Notes) -> Table<'a> {
        Table::open(document, None, (schema, schema.root), notes)
    }

    fn open(
        table: &'a DeTable<'a>,
        span: Option<Range<usize>>,
        (schema, section): (&'static Schema, &'static Section),
        notes: &'a Notes,
    ) -> Table<'a> {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if section.has(name) {
                continue;
            }
            let full = if section.name.is_empty() { name.to_owned() } else { format!("{}.{name}", section.name) };
            let message = if let Some(why) = (schema.needless)(section.name, name) {
                Diagnostic::at(key.span(), format!("{full}: there is no such key, as nothing needs it: {why}"))
                    .hint("leave it out")
            } else if section.later.contains(&name) {
                Diagnostic::at(key.span(), format!("{full}: this key is not in this version yet")).hint("leave it out")
            } else {
                let place = if section.name.is_empty() { String::new() } else { format!(" in {}", section.head) };
                Diagnostic::at(key.span(), format!("unknown key {}{place}", quoted(name)))
                    .hint(schema.meant(section, name))
            };
            notes.add(message);
        }
        Table { table: Some(table), span, schema, section, notes, wrong: RefCell::default() }
    }

    /// Returns whether the file has the table at all.
    pub fn is_written(&self) -> bool {
        self.table.is_some()
    }

    /// Notes a mistake in the table as a whole.
    pub fn note(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.notes.add(self.whole(message).hint(hint));
    }

    fn whole(&self, message: impl Into<String>) -> Diagnostic {
        match &self.span {
            Some(span) => Diagnostic::at(span.clone(), message),
            None => Diagnostic::whole(message),
        }
    }

    /// Returns where everything is noted.
    pub fn notes(&self) -> &'a Notes {
        self.notes
    }

    /// `key` with the section in front.
    pub fn full(&self, key: &str) -> String {
        if self.section.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.section.name) }
    }

    /// The value of `key`, if the file has one.
    pub fn value(&self, key: &'static str) -> Option<Value<'a>> {
        debug_assert!(self.section.has(key), "{key} is not in the schema of {}", self.section.head);
        let value: &'a Spanned<DeValue<'a>> = self.table?.get(key)?;
        Some(Value { value: value.get_ref(), span: value.span() })
    }

    /// Returns where `key` itself is written, if it is.
    pub fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table?.get_key_value(key).map(|(key, _)| key.span())
    }

    /// Returns the value of `key` as `read` takes it. `None`: the file has none, or a wrong one, which is noted.
    pub fn read<T>(&self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Result<T, Wrong>) -> Option<T> {
        let value = self.value(key)?;
        match read(&value) {
            Ok(read) => Some(read),
            Err(wrong) => {
                // Rules that compare two keys say nothing of a key that is wrong by itself: one mistake, one message.
                self.wrong.borrow_mut().push(key);
                self.wrong(key, value.span, wrong);
                None
            }
        }
    }

    /// Returns `value`, which was read from `key`, with the place of `key`: for comparisons between keys.
    pub fn got<T>(&self, key: &'static str, value: T) -> Got<T> {
        let span = self.value(key).map(|value| value.span);
        Got { value, span, wrong: self.wrong.borrow().contains(&key) }
    }

    /// The value of `key` as `read` takes it, or `default`.
    pub fn get<T>(&self, key: &'static str, default: T, read: impl FnOnce(&Value<'a>) -> Result<T, Wrong>) -> Got<T> {
        let value = self.read(key, read).unwrap_or(default);
        self.got(key, value)
    }

    /// Returns the value of `key` as `read` takes it, or `default`, without its place.
    pub fn or<T>(&self, key: &'static str, default: T, read: impl FnOnce(&Value<'a>) -> Result<T, Wrong>) -> T {
        self.get(key, default, read).value
    }

    /// Notes that the value of `key` at `span` is wrong.
    pub fn wrong(&self, key: &str, span: Range<usize>, wrong: Wrong) {
        wrong.more.into_iter().for_each(|part| self.wrong(key, span.clone(), part));
        let diagnostic = Diagnostic::at(wrong.at.unwrap_or(span), format!("{}: {}", self.full(key), wrong.reason));
        self.notes.add(match wrong.hint {
            Some(hint) => diagnostic.hint(hint),
            None => diagnostic,
        });
    }

    /// The table at `key`, empty where there is none.
    pub fn table(&self, key: &'static str, section: &'static Section) -> Table<'a> {
        let (schema, notes) = (self.schema, self.notes);
        let none = Table { table: None, span: None, schema, section, notes, wrong: RefCell::default() };
        let Some(value) = self.value(key) else { return none };
        match value.value {
            DeValue::Table(table) => Table::open(table, Some(value.span), (self.schema, section), self.notes),
            // `[[name]]` in place of `[name]` is the usual way to get here.
            DeValue::Array(_) if section.head.starts_with('[') => {
                let hint = format!("write {}, once", section.head);
                self.wrong(key, value.span.clone(), value.expected("one table").hint(hint));
                none
            }
            _ => {
                let hint = format!("write {}", section.form);
                self.wrong(key, value.span.clone(), value.expected("a table").hint(hint));
                none
            }
        }
    }

    /// The tables in the list at `key`.
    pub fn tables(&self, key: &'static str, section: &'static Section) -> Vec<Table<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(items) = value.value else {
            self.wrong(
                key,
                value.span.clone(),
                value.expected("a list of tables").hint(format!("write {}", section.form)),
            );
            return Vec::new();
        };
        items.iter().filter_map(|item| self.item(key, item, section)).collect()
    }

    fn item(&self, key: &str, item: &'a Spanned<DeValue<'a>>, section: &'static Section) -> Option<Table<'a>> {
        let value = Value { value: item.get_ref(), span: item.span() };
        if let DeValue::Table(table) = value.value {
            return Some(Table::open(table, Some(value.span), (self.schema, section), self.notes));
        }
        self.wrong(key, value.span.clone(), value.expected("a table").hint(format!("write {}", section.form)));
        None
    }

    /// The values in the list at `key`, each read by `read`, with its place.
    pub fn list<T>(&self, key: &'static str, read: impl Fn(&Value<'a>) -> Result<T, Wrong>) -> Vec<(T, Range<usize>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let items: &DeArray<'a> = match value.value {
            DeValue::Array(items) => items,
            _ => {
                self.wrong(key, value.span.clone(), value.expected("a list").hint(format!("write {key} = [\"…\"]")));
                return Vec::new();
            }
        };
        let mut values = Vec::new();
        for item in items {
            let value = Value { value: item.get_ref(), span: item.span() };
            match read(&value) {
                Ok(read) => values.push((read, value.span)),
                Err(wrong) => self.wrong(key, value.span, wrong),
            }
        }
        values
    }
}

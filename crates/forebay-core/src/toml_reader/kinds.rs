//! The kinds of values that the keys of a file take. Each kind reads a value, writes one as an operator would, and says in
//! words what it accepts, so that an entry of a [`section!`](crate::section) names its kind and nothing else.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::notation::{Notation, duration_text, size_text};
use super::table::{Value, Wrong};
use super::values;

/// A kind of value.
pub trait ValueKind {
    /// The type of the value.
    type Of;

    /// Reads one value of the file.
    ///
    /// # Errors
    /// The value is of another type or out of range.
    fn read(&self, value: &Value<'_>) -> Result<Self::Of, Wrong>;

    /// Writes a value as an operator would.
    fn written(&self, value: &Self::Of) -> Notation;

    /// Says what is accepted, for the documentation: `duration, 1ms to 30days`.
    fn takes(&self) -> String;
}

/// A kind whose reader is a function.
#[derive(Debug)]
pub struct Plain<T> {
    read: fn(&Value<'_>) -> Result<T, Wrong>,
    written: fn(&T) -> Notation,
    takes: &'static str,
}

impl<T> ValueKind for Plain<T> {
    type Of = T;

    fn read(&self, value: &Value<'_>) -> Result<T, Wrong> {
        (self.read)(value)
    }

    fn written(&self, value: &T) -> Notation {
        (self.written)(value)
    }

    fn takes(&self) -> String {
        self.takes.to_owned()
    }
}

/// Returns the kind of an IP address with a port.
#[must_use]
pub fn address() -> Plain<SocketAddr> {
    Plain {
        read: values::address,
        written: |address| Notation::Text(address.to_string()),
        takes: "IP address and port",
    }
}

/// Returns the kind of a switch.
#[must_use]
pub fn boolean() -> Plain<bool> {
    Plain { read: values::boolean, written: |yes| Notation::Flag(*yes), takes: "`true` or `false`" }
}

/// Returns the kind of a name that fits into a metric label and a header.
#[must_use]
pub fn name() -> Plain<String> {
    Plain {
        read: values::name,
        written: |name| Notation::Text(name.clone()),
        takes: "letters, digits, `_`, `-` and `.`, at most 64",
    }
}

/// The kind of a text on one line.
#[derive(Debug)]
pub struct Line(usize);

/// Returns the kind of a text with something in it, on one line, of at most `most` bytes.
#[must_use]
pub fn line(most: usize) -> Line {
    Line(most)
}

impl ValueKind for Line {
    type Of = String;

    fn read(&self, value: &Value<'_>) -> Result<String, Wrong> {
        values::line(self.0)(value)
    }

    fn written(&self, value: &String) -> Notation {
        Notation::Text(value.clone())
    }

    fn takes(&self) -> String {
        format!("text of 1 to {} bytes", self.0)
    }
}

/// The kind of a duration.
#[derive(Debug)]
pub struct DurationKind {
    read: fn(&Value<'_>) -> Result<Duration, Wrong>,
    least: Duration,
}

/// Returns the kind of a time limit.
#[must_use]
pub fn limit() -> DurationKind {
    DurationKind { read: values::limit, least: values::SHORTEST }
}

/// Returns the kind of the time between two rounds of work.
#[must_use]
pub fn interval() -> DurationKind {
    DurationKind { read: values::interval, least: values::SHORTEST_INTERVAL }
}

/// Returns the kind of a time to wait, which may be none.
#[must_use]
pub fn delay() -> DurationKind {
    DurationKind { read: values::delay, least: Duration::ZERO }
}

impl ValueKind for DurationKind {
    type Of = Duration;

    fn read(&self, value: &Value<'_>) -> Result<Duration, Wrong> {
        (self.read)(value)
    }

    fn written(&self, value: &Duration) -> Notation {
        Notation::Text(duration_text(*value))
    }

    fn takes(&self) -> String {
        format!("duration, `{}` to `{}`", duration_text(self.least), duration_text(values::LONGEST))
    }
}

/// The kind of a size in bytes.
#[derive(Debug)]
pub struct Size<T> {
    range: RangeInclusive<u64>,
    of: std::marker::PhantomData<T>,
}

/// Returns the kind of a size in `range`, in bytes.
#[must_use]
pub fn size<T: TryFrom<u64> + TryInto<u64> + Copy>(range: RangeInclusive<u64>) -> Size<T> {
    Size { range, of: std::marker::PhantomData }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> ValueKind for Size<T> {
    type Of = T;

    fn read(&self, value: &Value<'_>) -> Result<T, Wrong> {
        let bytes = values::size(self.range.clone())(value)?;
        T::try_from(bytes).map_err(|_| Wrong::because("this is more than the machine can address"))
    }

    fn written(&self, value: &T) -> Notation {
        Notation::Text(size_text((*value).try_into().unwrap_or(u64::MAX)))
    }

    fn takes(&self) -> String {
        format!("size, `{}` to `{}`", size_text(*self.range.start()), size_text(*self.range.end()))
    }
}

/// The kind of a whole number.
#[derive(Debug)]
pub struct Whole<T> {
    range: RangeInclusive<u32>,
    of: std::marker::PhantomData<T>,
}

/// Returns the kind of a whole number in `range`.
#[must_use]
pub fn whole<T: TryFrom<u32> + TryInto<u64> + Copy>(range: RangeInclusive<u32>) -> Whole<T> {
    Whole { range, of: std::marker::PhantomData }
}

impl<T: TryFrom<u32> + TryInto<u64> + Copy> ValueKind for Whole<T> {
    type Of = T;

    fn read(&self, value: &Value<'_>) -> Result<T, Wrong> {
        let number = values::whole(self.range.clone())(value)?;
        T::try_from(number).map_err(|_| Wrong::because("this is more than the machine can count"))
    }

    fn written(&self, value: &T) -> Notation {
        Notation::Whole((*value).try_into().unwrap_or(u64::MAX))
    }

    fn takes(&self) -> String {
        format!("whole number, {} to {}", self.range.start(), self.range.end())
    }
}

/// The kind of a number.
#[derive(Debug)]
pub struct Number(RangeInclusive<f64>);

/// Returns the kind of a number in `range`.
#[must_use]
pub fn number(range: RangeInclusive<f64>) -> Number {
    Number(range)
}

impl ValueKind for Number {
    type Of = f64;

    fn read(&self, value: &Value<'_>) -> Result<f64, Wrong> {
        values::number(self.0.clone())(value)
    }

    fn written(&self, value: &f64) -> Notation {
        Notation::Number(*value)
    }

    fn takes(&self) -> String {
        format!("number, {} to {}", self.0.start(), self.0.end())
    }
}

/// The kind of a choice between words.
#[derive(Debug)]
pub struct OneOf<T>(Vec<(&'static str, T)>);

/// Returns the kind of a choice between `choices`: each word, and what it means.
pub fn choice<T: Copy + PartialEq>(choices: impl IntoIterator<Item = (&'static str, T)>) -> OneOf<T> {
    OneOf(choices.into_iter().collect())
}

impl<T: Copy + PartialEq> ValueKind for OneOf<T> {
    type Of = T;

    fn read(&self, value: &Value<'_>) -> Result<T, Wrong> {
        values::choice(&self.0)(value)
    }

    fn written(&self, value: &T) -> Notation {
        let word = self.0.iter().find(|(_, choice)| choice == value).map(|(word, _)| (*word).to_owned());
        word.map_or(Notation::Nothing, Notation::Text)
    }

    fn takes(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("`\"{word}\"`")).collect();
        match words.split_last() {
            Some((last, first)) if !first.is_empty() => format!("{} or {last}", first.join(", ")),
            _ => words.concat(),
        }
    }
}

/// A kind that may also be switched off.
#[derive(Debug)]
pub struct OrOff<K>(K);

/// Returns the kind of what `kind` takes, or `"off"`.
pub fn or_off<K: ValueKind>(kind: K) -> OrOff<K> {
    OrOff(kind)
}

impl<K: ValueKind> ValueKind for OrOff<K> {
    type Of = Option<K::Of>;

    fn read(&self, value: &Value<'_>) -> Result<Option<K::Of>, Wrong> {
        values::or_off(|value: &Value<'_>| self.0.read(value))(value)
    }

    fn written(&self, value: &Option<K::Of>) -> Notation {
        value.as_ref().map_or_else(|| Notation::Text("off".to_owned()), |value| self.0.written(value))
    }

    fn takes(&self) -> String {
        format!("{}, or `\"off\"`", self.0.takes())
    }
}

/// A kind of value that need not be there, for a key whose default depends on another.
#[derive(Debug)]
pub struct IfSet<K>(K);

/// Returns the kind of what `kind` takes, or of no value where the key is not written.
pub fn set<K: ValueKind>(kind: K) -> IfSet<K> {
    IfSet(kind)
}

impl<K: ValueKind> ValueKind for IfSet<K> {
    type Of = Option<K::Of>;

    fn read(&self, value: &Value<'_>) -> Result<Option<K::Of>, Wrong> {
        self.0.read(value).map(Some)
    }

    fn written(&self, value: &Option<K::Of>) -> Notation {
        value.as_ref().map_or(Notation::Nothing, |value| self.0.written(value))
    }

    fn takes(&self) -> String {
        self.0.takes()
    }
}

/// The kind of a list.
#[derive(Debug)]
pub struct ListOf<K>(K);

/// Returns the kind of a list of what `kind` takes. Values of `kind` must be written as strings.
pub fn list_of<K: ValueKind>(kind: K) -> ListOf<K> {
    ListOf(kind)
}

impl<K: ValueKind> ValueKind for ListOf<K> {
    type Of = Vec<K::Of>;

    fn read(&self, value: &Value<'_>) -> Result<Vec<K::Of>, Wrong> {
        values::each(value, |item| self.0.read(item))
    }

    fn written(&self, value: &Vec<K::Of>) -> Notation {
        let text = |item: &K::Of| match self.0.written(item) {
            Notation::Text(text) => text,
            other => other.to_string(),
        };
        Notation::List(value.iter().map(text).collect())
    }

    fn takes(&self) -> String {
        format!("list of: {}", self.0.takes())
    }
}

/// A kind with a hint of its own for every wrong value.
#[derive(Debug)]
pub struct Hinted<K> {
    kind: K,
    hint: &'static str,
}

/// Returns `kind`, with `hint` in place of its own hints.
pub fn hinted<K: ValueKind>(kind: K, hint: &'static str) -> Hinted<K> {
    Hinted { kind, hint }
}

impl<K: ValueKind> ValueKind for Hinted<K> {
    type Of = K::Of;

    fn read(&self, value: &Value<'_>) -> Result<K::Of, Wrong> {
        self.kind.read(value).map_err(|wrong| wrong.hint(self.hint))
    }

    fn written(&self, value: &K::Of) -> Notation {
        self.kind.written(value)
    }

    fn takes(&self) -> String {
        self.kind.takes()
    }
}

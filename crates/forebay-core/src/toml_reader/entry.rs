//! The one entry of each key: the macro [`section!`](crate::section), of which a use is a section of a file, and what the
//! code that it writes needs. An entry gives a key's name, type, kind, default, reload class and documentation.

use std::marker::PhantomData;

use serde::{Serialize, Serializer};

use super::kinds::ValueKind;
use super::section::{Key, Section};
use super::table::Table;

/// A section that was written with [`section!`](crate::section).
pub trait Keys {
    /// The section with its keys.
    const SECTION: &'static Section;

    /// Takes over the values that `table` has. A value that is wrong is noted, and the old one stays.
    fn read(&mut self, table: &Table<'_>);

    /// Returns the keys in which `new` differs from this.
    fn changes(&self, new: &Self) -> Vec<Change>;

    /// Takes over from `old` the values that only a restart may change.
    fn keep(&mut self, old: &Self);

    /// Returns the values as an inline table: `{ base = "5s", max = "1m" }`.
    fn text(&self) -> String;
}

/// A key that has another value in a new configuration.
#[derive(Clone, Debug)]
pub struct Change {
    /// The key.
    pub key: &'static Key,
    /// The old value, as an operator would write it; empty for what a [`ByHand`] reads.
    pub old: String,
    /// The new value.
    pub new: String,
}

/// A way to read, show and describe the values of an entry: a [`ValueKind`], [`Nested`] or [`ByHand`].
pub trait Entry<T> {
    /// Reads `key` of `table` into `value`, which stays as it is where there is nothing to read.
    fn read_into(&self, value: &mut T, table: &Table<'_>, key: &'static str);

    /// Serializes `value` as an operator would write it.
    ///
    /// # Errors
    /// Those of `serializer`.
    fn serialize<S: Serializer>(&self, value: &T, serializer: S) -> Result<S::Ok, S::Error>;

    /// Returns `value` as an operator would write it.
    fn text(&self, value: &T) -> String;

    /// Says what is accepted, for the documentation.
    fn takes(&self) -> String;
}

impl<K: ValueKind> Entry<K::Of> for K {
    fn read_into(&self, value: &mut K::Of, table: &Table<'_>, key: &'static str) {
        if let Some(read) = table.read(key, |value| self.read(value)) {
            *value = read;
        }
    }

    fn serialize<S: Serializer>(&self, value: &K::Of, serializer: S) -> Result<S::Ok, S::Error> {
        self.written(value).serialize(serializer)
    }

    fn text(&self, value: &K::Of) -> String {
        self.written(value).to_string()
    }

    fn takes(&self) -> String {
        ValueKind::takes(self)
    }
}

/// The entry of a section within a section, such as `drain` in `[listen]`.
#[derive(Clone, Copy, Debug)]
pub struct Nested;

impl<T: Keys + Serialize> Entry<T> for Nested {
    fn read_into(&self, value: &mut T, table: &Table<'_>, key: &'static str) {
        value.read(&table.table(key, T::SECTION));
    }

    fn serialize<S: Serializer>(&self, value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    fn text(&self, value: &T) -> String {
        value.text()
    }

    fn takes(&self) -> String {
        format!("the keys of `{}`", T::SECTION.name)
    }
}

/// The entry of a key that code beside the table reads, because its value depends on another key, a file or the environment.
/// It holds what the key takes, in words.
#[derive(Clone, Copy, Debug)]
pub struct ByHand(pub &'static str);

impl<T: Serialize> Entry<T> for ByHand {
    fn read_into(&self, _value: &mut T, _table: &Table<'_>, _key: &'static str) {}

    fn serialize<S: Serializer>(&self, value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    fn text(&self, _value: &T) -> String {
        String::new()
    }

    fn takes(&self) -> String {
        self.0.to_owned()
    }
}

/// A value that serializes as its entry says.
pub struct Shown<'a, T, E> {
    entry: E,
    value: &'a T,
}

impl<'a, T, E: Entry<T>> Shown<'a, T, E> {
    /// Returns `value` in the form of `entry`.
    pub fn new(entry: E, value: &'a T) -> Shown<'a, T, E> {
        Shown { entry, value }
    }
}

impl<T, E: Entry<T>> Serialize for Shown<'_, T, E> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.entry.serialize(self.value, serializer)
    }
}

/// Returns the change of one key from `old` to `new`, if there is one.
pub fn change<T: PartialEq, E: Entry<T>>(entry: &E, key: &'static Key, old: &T, new: &T) -> Option<Change> {
    (old != new).then(|| Change { key, old: entry.text(old), new: entry.text(new) })
}

/// Returns what `entry` takes, in words.
pub fn takes<T, E: Entry<T>>(entry: &E, _type: PhantomData<T>) -> String {
    entry.takes()
}

/// Defines one section of a file: a struct with a public field for each key, and all that is known of the keys.
///
/// ```
/// use std::time::Duration;
/// use forebay_core::section;
/// use forebay_core::toml_reader::kinds::{limit, or_off};
///
/// section! {
///     name: "stream", head: "[stream]", form: "[stream] and its keys below";
///     /// How long an answer may take.
///     #[derive(Clone, Debug, PartialEq)]
///     pub struct Stream {
///         /// Longest gap between two events.
///         idle_timeout: Option<Duration> { takes: or_off(limit()), default: None, reload: AtOnce },
///     }
/// }
///
/// assert_eq!(Stream::default().idle_timeout, None);
/// assert_eq!(serde_json::to_string(&Stream::default()).unwrap(), r#"{"idle_timeout":"off"}"#);
/// ```
///
/// The head has the section's name, how to write its head, and an example. It may add `later` (names that a later version
/// will know), `also` (keys without a field) and `check` (a function that compares the values of several keys).
///
/// An entry is `field: Type { takes, default, reload }`. `takes` is a [`ValueKind`], [`Nested`] or [`ByHand`]. `key: "name"` goes
/// first where the key is not called as the field is. `said: "words"` follows a default that the documentation cannot quote:
/// it depends on the machine or on other keys, or there is none.
/// `reload` is a variant of [`Reload`](super::Reload).
///
/// The struct implements `Default`, or has the constructor whose head follows the struct, as in `pub fn of(url: Url);`. It
/// implements [`Keys`] and `Serialize`, with values as an operator would write them.
#[macro_export]
macro_rules! section {
    (
        name: $name:literal, head: $head:literal, form: $form:literal
        $(, later: [$($later:literal),+])? $(, also: [$($also:expr),+])? $(, check: $check:path)?;
        $(#[doc = $about:literal])+
        #[derive($($derive:ident),+)]
        $visible:vis struct $type:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $value:ty {
                    $(key: $key:literal,)? takes: $takes:expr, default: $default:expr, $(said: $said:literal,)? reload: $reload:ident $(,)?
                }
            ),+ $(,)?
        }
        $($(#[doc = $made_doc:literal])+ pub fn $made:ident($($argument:ident: $argument_type:ty),+);)?
    ) => {
        $(#[doc = $about])+
        #[derive($($derive),+)]
        $visible struct $type {
            $($(#[doc = $doc])+ pub $field: $value,)+
        }

        $crate::section!(@make $type { $($field: $default),+ } $($(#[doc = $made_doc])+ $made($($argument: $argument_type),+))?);

        impl $crate::toml_reader::Keys for $type {
            const SECTION: &'static $crate::toml_reader::Section = &$crate::toml_reader::Section {
                name: $name,
                head: $head,
                form: $form,
                about: concat!($($about),+),
                keys: &[
                    $($crate::toml_reader::Key {
                        name: $crate::section!(@name $field $($key)?),
                        full: concat!($name, ".", $crate::section!(@name $field $($key)?)),
                        takes: || $crate::toml_reader::entry::takes(&$takes, std::marker::PhantomData::<$value>),
                        default: || $crate::section!(@said $takes, $value, $default $(, $said)?),
                        reload: $crate::toml_reader::Reload::$reload,
                        about: concat!($($doc),+),
                    },)+
                    $($($also),+)?
                ],
                later: &[$($($later),+)?],
            };

            fn read(&mut self, table: &$crate::toml_reader::Table<'_>) {
                $(
                    let key = $crate::section!(@name $field $($key)?);
                    $crate::toml_reader::Entry::read_into(&$takes, &mut self.$field, table, key);
                )+
                $($check(self, table);)?
            }

            fn changes(&self, new: &Self) -> Vec<$crate::toml_reader::Change> {
                let mut keys = Self::SECTION.keys.iter();
                let found = [$(
                    keys.next().and_then(|key| {
                        $crate::toml_reader::entry::change::<$value, _>(&$takes, key, &self.$field, &new.$field)
                    })
                ),+];
                found.into_iter().flatten().collect()
            }

            fn keep(&mut self, old: &Self) {
                $(
                    if matches!($crate::toml_reader::Reload::$reload, $crate::toml_reader::Reload::Restart) {
                        self.$field.clone_from(&old.$field);
                    }
                )+
            }

            fn text(&self) -> String {
                let values = [$($crate::toml_reader::Entry::<$value>::text(&$takes, &self.$field)),+];
                let pairs = Self::SECTION.keys.iter().zip(values).map(|(key, value)| format!("{} = {value}", key.name));
                format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
            }
        }

        impl $crate::toml_reader::serde::Serialize for $type {
            fn serialize<S: $crate::toml_reader::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use $crate::toml_reader::serde::ser::SerializeStruct;
                let mut fields = serializer.serialize_struct(stringify!($type), [$(stringify!($field)),+].len())?;
                $(
                    let shown = $crate::toml_reader::entry::Shown::<'_, $value, _>::new($takes, &self.$field);
                    fields.serialize_field(stringify!($field), &shown)?;
                )+
                fields.end()
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $key:literal) => { $key };
    (@said $takes:expr, $value:ty, $default:expr) => {
        $crate::toml_reader::DefaultText::Written($crate::toml_reader::Entry::<$value>::text(&$takes, &$default))
    };
    (@said $takes:expr, $value:ty, $default:expr, $said:literal) => { $crate::toml_reader::DefaultText::Words($said) };
    (@make $type:ident { $($fields:tt)+ }) => {
        impl Default for $type {
            fn default() -> $type {
                $type { $($fields)+ }
            }
        }
    };
    (@make $type:ident { $($fields:tt)+ } $(#[doc = $doc:literal])+ $made:ident($($argument:ident: $argument_type:ty),+)) => {
        impl $type {
            $(#[doc = $doc])+
            #[must_use]
            pub fn $made($($argument: $argument_type),+) -> $type {
                $type { $($fields)+ }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::super::DefaultText;
    use super::super::kinds::{number, whole};
    use super::*;

    section! {
        name: "inner", head: "inner", form: "inner = { a = 1 }";
        /// A section within another.
        #[derive(Clone, Debug, PartialEq)]
        struct Inner {
            /// A number.
            a: f64 { takes: number(0.0..=9.0), default: 1.0, reload: AtOnce },
        }
    }

    section! {
        name: "outer", head: "[outer]", form: "[outer] and its keys below";
        /// A section.
        #[derive(Clone, Debug, PartialEq)]
        struct Outer {
            /// A key that is called as its field.
            bound: u32 { takes: whole(1..=9), default: 2, reload: Restart },
            /// A key with another name.
            secret: Option<u8> { key: "secret_file", takes: ByHand("a path"), default: None, said: "none", reload: AtOnce },
            /// A section.
            inner: Inner { takes: Nested, default: Inner::default(), reload: AtOnce },
        }
    }

    #[test]
    fn an_entry_gives_all_that_is_known_of_a_key() {
        let keys = Outer::SECTION.keys;
        assert_eq!([0, 1, 2].map(|at| keys[at].full), ["outer.bound", "outer.secret_file", "outer.inner"]);
        assert_eq!([0, 1, 2].map(|at| (keys[at].takes)()), ["whole number, 1 to 9", "a path", "the keys of `inner`"]);
        let written = |text: &str| DefaultText::Written(text.to_owned());
        let defaults = [written("2"), DefaultText::Words("none"), written("{ a = 1 }")];
        assert_eq!([0, 1, 2].map(|at| (keys[at].default)()), defaults);
        assert_eq!([keys[0].about, Outer::SECTION.about], [" A key that is called as its field.", " A section."]);
        let json = serde_json::to_string(&Outer::default()).unwrap();
        assert_eq!(json, r#"{"bound":2,"secret":null,"inner":{"a":1.0}}"#);
    }

    #[test]
    fn a_change_is_told_as_written_and_a_bound_key_is_kept() {
        let old = Outer::default();
        let mut new = Outer { bound: 3, secret: Some(4), inner: Inner { a: 1.5 } };
        let told: Vec<_> =
            old.changes(&new).into_iter().map(|change| (change.key.full, change.old, change.new)).collect();
        let text = str::to_owned;
        let inner = ("outer.inner", text("{ a = 1 }"), text("{ a = 1.5 }"));
        assert_eq!(told, [("outer.bound", text("2"), text("3")), ("outer.secret_file", text(""), text("")), inner]);
        new.keep(&old);
        assert_eq!((new.bound, new.secret, new.inner.a), (2, Some(4), 1.5));
    }
}

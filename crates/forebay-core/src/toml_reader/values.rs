//! The kinds of values that keys have: each reads one value of the file, or says why it is not right and what would be.
//! The reasons name the value; the hints show the form.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::diagnostic::quoted;
use super::notation::{duration_text, size_text};
use super::section::nearest;
use super::table::{Value, Wrong};
use crate::units::{parse_duration, parse_size};

/// The longest time that can be asked for: what is longer is meant as "off".
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// The shortest time that makes sense as a limit.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
/// The shortest time between two rounds of work.
pub(super) const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Any string.
pub fn text<'a>(value: &Value<'a>) -> Result<&'a str, Wrong> {
    match value.value {
        DeValue::String(text) => Ok(text.as_ref()),
        _ => Err(value.expected("a string")),
    }
}

/// The values of a list.
pub fn items<'a>(value: &Value<'a>) -> Result<Vec<Value<'a>>, Wrong> {
    match value.value {
        DeValue::Array(items) => {
            Ok(items.iter().map(|item| Value { value: item.get_ref(), span: item.span() }).collect())
        }
        _ => Err(value.expected("a list")),
    }
}

/// The values of a list, each as `read` takes it. Every value that is wrong is told, at its own place.
pub fn each<T>(value: &Value<'_>, read: impl Fn(&Value<'_>) -> Result<T, Wrong>) -> Result<Vec<T>, Wrong> {
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for item in items(value)? {
        match read(&item) {
            Ok(value) => right.push(value),
            Err(reason) => wrong.push(reason.at(item.span)),
        }
    }
    Wrong::all(wrong).map_or(Ok(right), Err)
}

/// A string with something in it, on one line, of at most `most` bytes.
pub fn line(most: usize) -> impl Fn(&Value<'_>) -> Result<String, Wrong> {
    move |value| {
        let text = text(value)?;
        if text.trim().is_empty() {
            return Err(Wrong::because("the string is empty"));
        }
        if text.trim() != text {
            return Err(Wrong::because(format!("{} begins or ends with a space", quoted(text))));
        }
        if text.chars().any(char::is_control) {
            return Err(Wrong::because(format!("{} has a control character in it", quoted(text))));
        }
        if text.len() > most {
            return Err(Wrong::because(format!("{} is longer than {most} bytes", quoted(text))));
        }
        Ok(text.to_owned())
    }
}

/// A name that fits into a metric label and a header: letters, digits, `_`, `-` and `.`, at most 64 of them.
pub fn name(value: &Value<'_>) -> Result<String, Wrong> {
    let text = text(value)?;
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(Wrong::because(format!("{} is no name for a label", quoted(text)))
        .hint("use letters, digits, `_`, `-` and `.`, at most 64 of them, such as \"tp1x2\""))
}

/// Returns whether `text` fits into a metric label and a header.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

/// `true` or `false`.
pub fn boolean(value: &Value<'_>) -> Result<bool, Wrong> {
    match value.value {
        DeValue::Boolean(yes) => Ok(*yes),
        DeValue::String(text) if matches!(text.as_ref(), "true" | "false") => {
            Err(value.expected("true or false").hint(format!("write {text}, without quotes")))
        }
        _ => Err(value.expected("true or false")),
    }
}

/// A whole number in `range`.
pub fn whole<T: TryFrom<i64> + Into<u64> + Copy>(range: RangeInclusive<T>) -> impl Fn(&Value<'_>) -> Result<T, Wrong> {
    let (least, most): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
    move |value| {
        let DeValue::Integer(written) = value.value else {
            return Err(value.expected("a whole number").hint(unquoted(value, "a whole number", least, most)));
        };
        let number = i64::from_str_radix(written.as_str(), written.radix()).ok();
        let fits = number.filter(|number| u64::try_from(*number).is_ok_and(|n| (least..=most).contains(&n)));
        fits.and_then(|number| T::try_from(number).ok()).ok_or_else(|| outside(written, least, most))
    }
}

/// A number in `range`; whole numbers are numbers too.
pub fn number(range: RangeInclusive<f64>) -> impl Fn(&Value<'_>) -> Result<f64, Wrong> {
    move |value| {
        let (number, written) = match value.value {
            DeValue::Integer(whole) => {
                let number = i64::from_str_radix(whole.as_str(), whole.radix()).ok();
                #[expect(clippy::cast_precision_loss, reason = "ranges end far below 2^53")]
                (number.map(|number| number as f64), whole.to_string())
            }
            DeValue::Float(float) => (float.as_str().parse().ok(), float.to_string()),
            _ => return Err(value.expected("a number").hint(unquoted(value, "a number", range.start(), range.end()))),
        };
        number.filter(|number| range.contains(number)).ok_or_else(|| outside(&written, range.start(), range.end()))
    }
}

/// Returns how a number is written, for a value that is none. A number in quotes, or a percentage, is repeated as it should be.
fn unquoted(value: &Value<'_>, what: &str, least: impl Display, most: impl Display) -> String {
    let number = match value.value {
        DeValue::String(text) => Some(text.trim().trim_end_matches('%').trim_end()),
        _ => None,
    };
    match number.filter(|text| text.parse::<f64>().is_ok_and(f64::is_finite)) {
        Some(number) => format!("write {number}, without quotes"),
        None => format!("write {what} from {least} to {most}, without quotes"),
    }
}

fn outside(written: &dyn Display, least: impl Display, most: impl Display) -> Wrong {
    Wrong::because(format!("{written} is not between {least} and {most}"))
}

/// A time limit.
pub fn limit(value: &Value<'_>) -> Result<Duration, Wrong> {
    duration_from(value, SHORTEST)
}

/// The time between two rounds of work.
pub fn interval(value: &Value<'_>) -> Result<Duration, Wrong> {
    duration_from(value, SHORTEST_INTERVAL)
}

/// A time to wait, which may be none.
pub fn delay(value: &Value<'_>) -> Result<Duration, Wrong> {
    duration_from(value, Duration::ZERO)
}

fn duration_from(value: &Value<'_>, least: Duration) -> Result<Duration, Wrong> {
    const FORM: &str = "write a number and a unit, such as \"250ms\", \"10s\" or \"5m\"";
    let text = match value.value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(number) => {
            return Err(value.expected("a duration").hint(format!("with its unit: \"{number}s\" or \"{number}ms\"")));
        }
        _ => return Err(value.expected("a duration").hint(FORM)),
    };
    if text == "off" {
        return Err(Wrong::because("this cannot be off").hint(FORM));
    }
    let duration =
        parse_duration(text).map_err(|_| Wrong::because(format!("{} is not a duration", quoted(text))).hint(FORM))?;
    if (least..=LONGEST).contains(&duration) {
        return Ok(duration);
    }
    Err(outside(&quoted(text), duration_text(least), duration_text(LONGEST)))
}

/// A size in bytes in `range`.
pub fn size(range: RangeInclusive<u64>) -> impl Fn(&Value<'_>) -> Result<u64, Wrong> {
    const FORM: &str = "write a number and a unit, such as \"64KiB\", \"4MiB\" or \"2GiB\"";
    move |value| {
        let text = match value.value {
            DeValue::String(text) => text.as_ref(),
            DeValue::Integer(number) => {
                return Err(value.expected("a size").hint(format!("with its unit: \"{number}MiB\" or \"{number}B\"")));
            }
            _ => return Err(value.expected("a size").hint(FORM)),
        };
        if text == "off" {
            return Err(Wrong::because("this cannot be off").hint(FORM));
        }
        let size =
            parse_size(text).map_err(|_| Wrong::because(format!("{} is not a size", quoted(text))).hint(FORM))?;
        if range.contains(&size) {
            return Ok(size);
        }
        Err(outside(&quoted(text), size_text(*range.start()), size_text(*range.end())))
    }
}

/// Returns what `read` takes, or "off".
pub fn or_off<T>(read: impl Fn(&Value<'_>) -> Result<T, Wrong>) -> impl Fn(&Value<'_>) -> Result<Option<T>, Wrong> {
    move |value| match value.value {
        DeValue::String(text) if text == "off" => Ok(None),
        DeValue::Boolean(false) => Err(value.expected("a limit or \"off\"").hint("write \"off\" to have no limit")),
        _ => read(value).map(Some).map_err(|wrong| Wrong {
            hint: Some(match wrong.hint {
                Some(hint) => format!("{hint}, or \"off\" for no limit"),
                None => "write \"off\" to have no limit".to_owned(),
            }),
            ..wrong
        }),
    }
}

/// One of `choices`.
pub fn choice<T: Copy>(choices: &[(&'static str, T)]) -> impl Fn(&Value<'_>) -> Result<T, Wrong> {
    move |value| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let allowed = format!("write one of \"{}\"", names.join("\", \""));
        let DeValue::String(text) = value.value else { return Err(value.expected("a string").hint(allowed)) };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| name == text) {
            return Ok(*choice);
        }
        let hint = match nearest(text, &names) {
            Some(near) => format!("did you mean \"{near}\"? {allowed}"),
            None => allowed,
        };
        Err(Wrong::because(format!("{} is none of the choices", quoted(text))).hint(hint))
    }
}

/// An IP address with a port.
pub fn address(value: &Value<'_>) -> Result<SocketAddr, Wrong> {
    let DeValue::String(text) = value.value else {
        return Err(value.expected("an address").hint("write an IP address and a port, such as \"127.0.0.1:8080\""));
    };
    text.parse().map_err(|_| {
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u64>().ok());
        if port.is_some_and(|port| port > u64::from(u16::MAX)) {
            return Wrong::because(format!("the port of {} is not between 1 and 65535", quoted(text)))
                .hint("write an IP address and a port, such as \"127.0.0.1:8080\"");
        }
        let hint = match text.rsplit_once(':') {
            Some(("", port)) if port.parse::<u16>().is_ok() => {
                format!("write \"0.0.0.0:{port}\" for every interface, or \"127.0.0.1:{port}\" for this machine")
            }
            Some(("localhost", port)) if port.parse::<u16>().is_ok() => format!("write \"127.0.0.1:{port}\""),
            _ => "write an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"".to_owned(),
        };
        Wrong::because(format!("{} is not an IP address with a port", quoted(text))).hint(hint)
    })
}

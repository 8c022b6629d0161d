//! The trace that a request belongs to, as W3C Trace Context has it: `traceparent` is read, and written for each attempt. What
//! is not valid to the letter is as if it were not there. It must never repeat what a client wrote.
//!
//! Hot path: one parse of 55 bytes, and one header of 55 bytes for each attempt.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The header with a request's trace and its parent.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with what other tracing systems keep beside it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The caller samples the trace.
const SAMPLED: u8 = 0x01;
/// The trace's identifier is random (level 2 of the recommendation). Who passes a trace on passes this on.
const RANDOM: u8 = 0x02;
/// Bytes of a header of version 00, which is also how any later version begins.
const LENGTH: usize = 55;

/// The caller's span, which is the parent of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The trace.
    pub trace: u128,
    /// The caller's span.
    pub span: u64,
    /// The flags that may be passed on.
    flags: u8,
}

/// The trace of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The identifier of the trace.
    pub trace: u128,
    /// The caller's span, where there is one.
    pub parent: Option<u64>,
    flags: u8,
}

impl Caller {
    /// Reads the caller's span. `None` where there is none, more than one, or one that is not valid.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Caller> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        // Two of them contradict each other, and the specification says to start anew.
        let (value, None) = (values.next()?, values.next()) else { return None };
        parse(value.as_bytes())
    }
}

/// Reads `version-trace-parent-flags`, all of them in lower-case hexadecimal digits.
fn parse(value: &[u8]) -> Option<Caller> {
    let (known, rest) = (value.get(..LENGTH)?, &value[LENGTH..]);
    let [version, trace, span, flags] = [&known[..2], &known[3..35], &known[36..52], &known[53..]];
    if [known[2], known[35], known[52]] != [b'-'; 3] {
        return None;
    }
    let version = u8::try_from(hex(version)?).ok()?;
    // 255 is no version. A later one than ours may go on behind a further dash.
    let ends_well = match version {
        0 => rest.is_empty(),
        255 => false,
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let caller = Caller {
        trace: hex(trace)?,
        span: u64::try_from(hex(span)?).ok()?,
        flags: u8::try_from(hex(flags)?).ok()? & (SAMPLED | RANDOM),
    };
    (ends_well && caller.trace != 0 && caller.span != 0).then_some(caller)
}

/// Reads digits, of which there are at most 32.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            // Lower case alone, to the letter: a span that we accept and the next hop refuses would break the trace in two.
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

impl Context {
    /// Takes the caller's trace over, or begins a new one of which `share` are sampled.
    #[must_use]
    pub fn new(caller: Option<Caller>, share: f64) -> Context {
        match caller {
            Some(Caller { trace, span, flags }) => Context { trace, parent: Some(span), flags },
            None => {
                let sampled = if fastrand::f64() < share { SAMPLED } else { 0 };
                // Zero is the one identifier that there is not.
                Context { trace: fastrand::u128(1..), parent: None, flags: sampled | RANDOM }
            }
        }
    }

    /// Returns whether the trace is recorded.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The flags as they are written.
    #[must_use]
    pub fn flags(self) -> u8 {
        self.flags
    }

    /// Names `span` as the parent of what a backend makes of a request. What other systems keep goes on with the caller's trace, and
    /// not with a new one.
    pub fn write(self, span: u64, headers: &mut HeaderMap) {
        let mut text = [b'-'; LENGTH];
        put(0, &mut text[..2]);
        put(self.trace, &mut text[3..35]);
        put(span.into(), &mut text[36..52]);
        put(self.flags.into(), &mut text[53..]);
        let value = HeaderValue::from_bytes(&text).expect("hexadecimal digits and dashes are a valid value");
        headers.insert(TRACEPARENT, value);
        // A `tracestate` belongs to the trace that it came with. Beside a new one it would be another's.
        if self.parent.is_none() {
            headers.remove(TRACESTATE);
        }
    }
}

fn put(number: u128, digits: &mut [u8]) {
    let count = digits.len();
    for (at, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * (count - 1 - at))) as usize & 15];
    }
}

/// A new span's identifier.
#[must_use]
pub fn new_span() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn parsed(text: &str) -> Option<Caller> {
        parse(text.as_bytes())
    }

    #[test]
    fn a_valid_parent_is_read() {
        let caller = Caller { trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span: 0x00f0_67aa_0ba9_02b7, flags: 1 };
        assert_eq!(parsed(&format!("00-{TRACE}-{SPAN}-01")), Some(caller));
        assert_eq!(parsed(&format!("00-{TRACE}-{SPAN}-00")), Some(Caller { flags: 0, ..caller }));
        assert_eq!(parsed(&format!("00-{TRACE}-{SPAN}-03")), Some(Caller { flags: 3, ..caller }));
        // Flags that nobody has defined yet are not passed on.
        assert_eq!(parsed(&format!("00-{TRACE}-{SPAN}-fd")), Some(caller));
        // Later versions begin alike.
        assert_eq!(parsed(&format!("cc-{TRACE}-{SPAN}-01")), Some(caller));
        assert_eq!(parsed(&format!("cc-{TRACE}-{SPAN}-01-what the future brings")), Some(caller));
    }

    #[test]
    fn what_is_not_valid_to_the_letter_is_no_parent() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-011"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0x-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00_{TRACE}_{SPAN}_01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01 "),
            format!("00-{}-{SPAN}-01", TRACE.replace('4', "+")),
        ] {
            assert_eq!(parsed(&text), None, "{text:?}");
        }
    }

    #[test]
    fn two_parents_are_none() {
        let value = HeaderValue::try_from(format!("00-{TRACE}-{SPAN}-01")).unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(Caller::of(&headers), None);
        headers.append(TRACEPARENT, value.clone());
        assert!(Caller::of(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert_eq!(Caller::of(&headers), None);
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_trace() {
        let caller = parsed(&format!("00-{TRACE}-{SPAN}-01"));
        let mut headers = HeaderMap::from_iter([(TRACESTATE, HeaderValue::from_static("a=b"))]);
        Context::new(caller, 0.0).write(7, &mut headers);
        assert_eq!(headers[TRACEPARENT], format!("00-{TRACE}-0000000000000007-01"));
        assert_eq!(headers[TRACESTATE], "a=b");
    }

    #[test]
    fn a_new_trace_is_sampled_by_its_share_and_has_no_others_state() {
        let mut headers = HeaderMap::from_iter([(TRACESTATE, HeaderValue::from_static("a=b"))]);
        let (none, all) = (Context::new(None, 0.0), Context::new(None, 1.0));
        assert!(!none.is_sampled() && all.is_sampled() && none.trace != all.trace);
        none.write(new_span(), &mut headers);
        let read = Caller::of(&headers).unwrap();
        assert_eq!((read.trace, read.flags), (none.trace, RANDOM));
        assert!(!headers.contains_key(TRACESTATE));
        let sampled = (0..4000).filter(|_| Context::new(None, 0.25).is_sampled()).count();
        assert!((800..1200).contains(&sampled), "{sampled}");
    }
}

//! Where the fields of a multipart form stand in its bytes, so that one can be replaced and the rest passes as it came.

use std::ops::Range;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use memchr::memmem::{self, Finder};

/// Returns where the values of the fields of this name stand. Files are no fields. Empty for a body that is no such form.
pub(super) fn values(headers: &HeaderMap, body: &[u8], name: &str) -> Vec<Range<usize>> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let Some(boundary) = kind.and_then(|kind| multer::parse_boundary(kind).ok()) else { return Vec::new() };
    let (opening, between) = (format!("--{boundary}"), format!("\r\n--{boundary}"));
    let delimiter = Finder::new(&between);
    let mut found = Vec::new();
    let first = if body.starts_with(opening.as_bytes()) {
        Some(opening.len())
    } else {
        delimiter.find(body).map(|at| at + between.len())
    };
    let Some(mut at) = first else { return found };
    // What follows the boundary is the end of its line, or `--` behind the last part.
    while let Some(end_of_head) = memmem::find(&body[at..], b"\r\n\r\n").filter(|_| !body[at..].starts_with(b"--")) {
        let start = at + end_of_head + 4;
        // The line break before the boundary may be that of the head, where the value is empty.
        let Some(length) = delimiter.find(&body[start - 2..]) else { return found };
        let end = (start - 2 + length).max(start);
        if is_field(&body[at..at + end_of_head], name) {
            found.push(start..end);
        }
        at = start - 2 + length + between.len();
    }
    found
}

/// Returns whether the head of a part is that of a field of this name.
fn is_field(head: &[u8], name: &str) -> bool {
    let head = String::from_utf8_lossy(head);
    let disposition = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(header, value)| header.trim().eq_ignore_ascii_case("content-disposition").then_some(value));
    let Some(disposition) = disposition else { return false };
    let mut parameters = disposition.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let value_of =
        |(key, value): (&str, &str)| (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned());
    let mut is_named = false;
    parameters.all(|parameter| {
        let (key, value) = value_of(parameter);
        is_named |= key == "name" && value == name;
        !key.starts_with("filename")
    }) && is_named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &str) -> Vec<&str> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("multipart/form-data; boundary=\"B-1\""));
        values(&headers, body.as_bytes(), "model").into_iter().map(|at| &body[at]).collect()
    }

    #[test]
    fn fields_are_found_where_they_stand() {
        let part = |disposition: &str, value: &str| format!("--B-1\r\n{disposition}\r\n\r\n{value}\r\n");
        let model = |value: &str| part("Content-Disposition: form-data; name=\"model\"", value);
        let file = part("content-disposition: form-data; name=\"file\"; filename=\"model\"", "RIFF\r\n--B\r\n\r\nx");
        let decoy = part("content-disposition: form-data; name=\"model\"; filename=\"x\"", "no");
        let end = "--B-1--\r\n";
        assert_eq!(found(&format!("{file}{}{decoy}{end}", model("whisper"))), ["whisper"]);
        assert_eq!(found(&format!("{}{file}{}{end}", model("a"), model(""))), ["a", ""]);
        assert_eq!(found(&format!("preamble\r\n{}{end}", model("a\r\nb"))), ["a\r\nb"]);
        let unquoted = part("Content-Type: text/plain\r\ncontent-disposition: form-data;name=model", "m");
        assert_eq!(found(&format!("{unquoted}{end}")), ["m"]);
        for broken in ["", "--B-1", "--B-1--", "--B-1\r\n\r\n", &model("cut")[..30], "nonsense"] {
            assert!(found(broken).is_empty(), "{broken}");
        }
    }
}

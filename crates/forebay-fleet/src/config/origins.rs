//! The origins whose web pages may send requests, as `cors.origins` says.

/// The origins that may send requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Those that the backends allow.
    Backend,
    /// None.
    Off,
    /// These, `scheme://host[:port]` each; `*` is every one.
    These(Vec<String>),
}

impl Origins {
    /// Returns whether a list has this origin.
    #[must_use]
    pub fn lists(&self, origin: &[u8]) -> bool {
        match self {
            Origins::These(origins) => origins.iter().any(|one| one == "*" || one.as_bytes() == origin),
            Origins::Backend | Origins::Off => false,
        }
    }
}

/// Returns whether `text` is an origin as a browser sends it: scheme, host and, unless it is the scheme's own, port.
pub(super) fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let Some((scheme, authority)) = uri.scheme_str().zip(uri.authority()) else { return false };
    let own_port = matches!((scheme, authority.port_u16()), ("http", Some(80)) | ("https", Some(443)));
    // Whatever else there is (a path, a slash, a user, capitals) no browser sends.
    !own_port && text == format!("{scheme}://{authority}").to_ascii_lowercase() && !text.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for good in ["http://a", "https://chat.example.com", "http://localhost:3000", "http://[::1]:8080", "app://x"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in
            ["a", "http://a/", "http://a/x", "http://A", "https://a:443", "http://a:80", "http://u@a", "*", "", "null"]
        {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}

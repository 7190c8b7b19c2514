//! What a path names.

use percent_encoding::percent_decode_str;

/// A resource.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A key of a group.
    Entry { group: Vec<u8>, key: Vec<u8> },
    /// All of a group.
    Group(Vec<u8>),
}

impl Target {
    /// What an encoded path names, if anything.
    pub(super) fn of(path: &str) -> Option<Target> {
        let rest = path.strip_prefix("/v1/")?;
        let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let (group, key) = rest.split_once('/').map_or((rest, None), |(group, key)| (group, Some(key)));
        let group = Some(decoded(group)).filter(|group| !group.is_empty())?;
        Some(match key {
            Some(key) if !key.is_empty() => Target::Entry { group, key: decoded(key) },
            _ => Target::Group(group),
        })
    }
}

/// Whether two hexadecimal digits stand behind each percent sign.
pub(super) fn is_encoded(path: &str) -> bool {
    path.split('%').skip(1).all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_begins_a_byte_in_two_digits() {
        for good in ["/v1/g/k", "/v1/g/%00%fF", "/v1/g/%2525", "/v1/g/%25"] {
            assert!(is_encoded(good), "{good}");
        }
        for bad in ["/v1/g/100%", "/v1/g/%2", "/v1/g/%zz", "/v1/%g/k", "/v1/g/%%25"] {
            assert!(!is_encoded(bad), "{bad}");
        }
    }

    #[test]
    fn a_key_may_have_any_bytes_and_slashes() {
        let entry =
            |group: &[u8], key: &[u8]| Some(Target::Entry { group: group.to_vec(), key: key.to_vec() });
        assert_eq!(Target::of("/v1/scores/Tom"), entry(b"scores", b"Tom"));
        assert_eq!(Target::of("/v1/pages/a/b%2Fc"), entry(b"pages", b"a/b/c"));
        assert_eq!(Target::of("/v1/a%2Fb/%00%ff%20+"), entry(b"a/b", b"\x00\xff +"));
        assert_eq!(Target::of("/v1/pages//x"), entry(b"pages", b"/x"));
        assert_eq!(Target::of("/v1/scores"), Some(Target::Group(b"scores".to_vec())));
        assert_eq!(Target::of("/v1/scores/"), Some(Target::Group(b"scores".to_vec())));
        for nothing in ["/", "/v1", "/v1/", "/v1//Tom", "/v2/scores/Tom", "/scores/Tom"] {
            assert_eq!(Target::of(nothing), None, "{nothing}");
        }
    }
}

//! Where a key is asked for: a URL with `{group}` and `{key}` in it, each of which is one piece of a path or
//! query whatever bytes it has.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::Url;

use crate::loader::LoaderError;

/// What stays as it is (RFC 3986, unreserved).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// They stand for the two while a URL is parsed that has none of them yet.
const GROUP: &str = "peanut0group0";
const KEY: &str = "peanut0key0";

/// A checked URL.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// As parsers write it, with `GROUP` and `KEY`.
    template: String,
}

impl Address {
    /// Errors do not have the URL, in which there may be secrets.
    pub(super) fn new(url: &str) -> Result<Self, LoaderError> {
        let keys = url.matches("{key}").count();
        if keys == 0 {
            return Err("`url` has no {key} in it".into());
        }
        let mut url = Url::parse(&url.replace("{group}", GROUP).replace("{key}", KEY))
            .map_err(|error| format!("`url`: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("`url` is neither http nor https".into());
        }
        let in_place = url.path().matches(KEY).count() + url.query().unwrap_or("").matches(KEY).count();
        if in_place != keys {
            return Err("`url` has a {key} outside its path and its query".into());
        }
        url.set_fragment(None);
        Ok(Address { template: url.into() })
    }

    /// The URL of a key. `.` and `..` have none in a path: they would name another one, also encoded.
    pub(super) fn of(&self, group: &str, key: &[u8]) -> Result<Url, LoaderError> {
        let with_group =
            self.template.replace(GROUP, &percent_encode(group.as_bytes(), UNRESERVED).to_string());
        let with_group = parse_as_it_is(&with_group).ok_or("the group's name cannot stand in the `url`")?;
        let with_key = with_group.as_str().replace(KEY, &percent_encode(key, UNRESERVED).to_string());
        parse_as_it_is(&with_key).ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            LoaderError::of_key(format!("the key `{key}` would change the path that it stands in"))
        })
    }
}

/// Parses a URL whose path and query stay as they are by that.
fn parse_as_it_is(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let path =
        |url: &str| url.split_once("://").and_then(|(_, rest)| Some(rest[rest.find('/')?..].to_owned()));
    (path(url.as_str()) == path(text)).then_some(url)
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;

    use super::*;

    #[test]
    fn every_key_is_one_segment_and_comes_back_as_itself() {
        let address = Address::new("http://h:80/a/../x/{group}/{key}?k={key}&v='1'#top").unwrap();
        let mut keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        keys.extend((0..=255).flat_map(|byte| [vec![b'.', byte], vec![byte, b'.'], vec![b'%', byte, b'e']]));
        for key in [
            "%2e",
            "%2E%2E",
            ".%2e",
            "a/../b",
            "..%2f",
            "../",
            "/..",
            "//",
            "a//b",
            "\\",
            "..\\",
            "a\\..\\b",
            "?",
            "#",
            "a?b#c",
            "\r\n",
            "\t..",
            " ..",
            ".. ",
            "...",
            "{key}",
            "{group}",
            "peanut0key0",
            "peanut0group0",
            "ü",
            "+",
            "%",
            "..;/",
            "\u{202e}",
            "a&k=b",
        ] {
            keys.push(key.as_bytes().to_vec());
        }
        for key in keys {
            let url = match address.of("g", &key) {
                Ok(url) => url,
                Err(error) => {
                    assert!(matches!(&key[..], b"." | b".."), "{key:?}: {error}");
                    assert!(error.is_of_key());
                    continue;
                }
            };
            assert!(!matches!(&key[..], b"." | b".."));
            let segments: Vec<&str> = url.path_segments().unwrap().collect();
            assert_eq!(segments[..2], ["x", "g"], "{key:?}");
            assert_eq!(segments.len(), 3, "{key:?}");
            assert_eq!(percent_decode_str(segments[2]).collect::<Vec<u8>>(), key);
            let query = url.query().unwrap().strip_suffix("&v=%271%27").unwrap().strip_prefix("k=").unwrap();
            assert_eq!(percent_decode_str(query).collect::<Vec<u8>>(), key);
            assert!(!query.contains('+'), "some take it for a space");
        }
    }

    #[test]
    fn dots_are_refused_wherever_they_would_change_a_path_and_nowhere_else() {
        for (url, key, is_good) in [
            ("http://h/{key}", ".", false),
            ("http://h/{key}", "..", false),
            ("http://h/{key}/", "..", false),
            ("http://h/a/{key}/b", "..", false),
            ("http://h/.{key}", ".", false),
            ("http://h/.{key}", "..", true),
            ("http://h/%2e{key}", ".", false),
            ("http://h/{key}{key}", ".", false),
            ("http://h/{key}.json", ".", true),
            ("http://h/get?key={key}", "..", true),
            ("http://h/get?key={key}", "../x", true),
        ] {
            assert_eq!(Address::new(url).unwrap().of("g", key.as_bytes()).is_ok(), is_good, "{url} {key}");
        }
        let grouped = Address::new("http://h/{group}/{key}").unwrap();
        assert!(grouped.of("..", b"k").is_err() && grouped.of("a..", b"k").is_ok());
        let hosts = Address::new("http://{group}.h/{key}").unwrap();
        assert_eq!(hosts.of("Scores", b"Tom").unwrap().as_str(), "http://scores.h/Tom");
    }

    #[test]
    fn a_key_stands_in_the_path_or_the_query() {
        for url in [
            "http://{key}/",
            "http://{key}@h/x",
            "http://h/x#{key}",
            "http://h/{key}#{key}",
            "http://{key}.h/{key}",
        ] {
            assert!(Address::new(url).unwrap_err().to_string().contains("outside"), "{url}");
        }
        for (url, names) in [
            ("http://h/", "{key}"),
            ("ftp://h/{key}", "neither http"),
            ("http//{key}", "`url`"),
            ("http://h:x/{key}", "`url`"),
        ] {
            let error = Address::new(url).unwrap_err().to_string();
            assert!(error.contains(names) && !error.contains("//"), "there may be secrets in it: {error}");
        }
    }
}

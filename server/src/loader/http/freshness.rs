//! How long an answer stays fresh, by RFC 9111 for a shared cache.
//!
//! Only the body is kept, and only for one request, which is always the same: so `Vary` matters only as `*`,
//! and `Set-Cookie` and qualified directives (`private="set-cookie"`) not for what they name, but the
//! qualified ones count as if they were not, which the RFC allows. There are no heuristics: an answer that
//! says nothing lives as long as its group says. `Age` counts as it is; that of caches which set none, by
//! `Date`, is left out, since clocks differ more often.

use std::time::{Duration, SystemTime};

use reqwest::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderMap, HeaderName, VARY};

/// The longest time that is told apart (RFC 9111, 1.2.2).
const LONGEST: u64 = 1 << 31;

/// How long the answer stays fresh from `now` on, when it came; zero: it must not be kept. `None` where it
/// does not say.
pub(super) fn lifetime(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let control = Directives::of(headers);
    // Who understands 200, as we do, need not heed the `no-store` beside `must-understand`.
    let may_store = !control.has("no-store") || control.has("must-understand");
    if !may_store || control.has("private") || control.has("no-cache") || varies_by_everything(headers) {
        return Some(Duration::ZERO);
    }
    let said = control.seconds("s-maxage").or_else(|| control.seconds("max-age"));
    let said = said.or_else(|| expires(headers, now));
    said.map(|said| said.saturating_sub(age(headers)))
}

fn varies_by_everything(headers: &HeaderMap) -> bool {
    let of_value = |value: &str| value.split(',').any(|member| member.trim() == "*");
    headers.get_all(VARY).iter().any(|value| of_value(&String::from_utf8_lossy(value.as_bytes())))
}

/// `Expires`, reckoned from `Date` so that the origin's clock need not be ours. One that is no date, like
/// `0`, is past.
fn expires(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = |name: HeaderName| {
        let value = headers.get(name)?.to_str().ok()?;
        httpdate::parse_http_date(value.trim()).ok()
    };
    headers.contains_key(EXPIRES).then(|| {
        let expires = date(EXPIRES).and_then(|at| at.duration_since(date(DATE).unwrap_or(now)).ok());
        expires.unwrap_or_default()
    })
}

/// How long the answer had been in other caches.
fn age(headers: &HeaderMap) -> Duration {
    let first = headers.get(AGE).and_then(|value| value.to_str().ok()).and_then(|all| all.split(',').next());
    first.and_then(|age| seconds(age.trim())).unwrap_or_default()
}

/// Decimal digits and nothing else.
fn seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // What is too long for a number is long.
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(LONGEST).min(LONGEST)))
}

/// The directives of `Cache-Control`, names in lower case.
struct Directives(Vec<(String, Option<String>)>);

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut directives = Vec::new();
        for value in headers.get_all(CACHE_CONTROL) {
            let value = String::from_utf8_lossy(value.as_bytes());
            let mut rest = &*value;
            while !rest.is_empty() {
                let (directive, after) = split_unquoted(rest, b',');
                let (name, argument) = split_unquoted(directive, b'=');
                let argument = (name.len() < directive.len()).then(|| unquoted(argument.trim()));
                directives.push((name.trim().to_ascii_lowercase(), argument));
                rest = after;
            }
        }
        Directives(directives)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(directive, _)| directive == name)
    }

    /// The seconds of a directive: none where it has no number, or two that differ, since freshness that
    /// cannot be read is none (RFC 9111, 4.2.1).
    fn seconds(&self, name: &str) -> Option<Duration> {
        let mut said = self
            .0
            .iter()
            .filter(|(directive, _)| directive == name)
            .map(|(_, argument)| argument.as_deref().and_then(seconds).unwrap_or_default());
        let first = said.next()?;
        Some(if said.all(|other| other == first) { first } else { Duration::ZERO })
    }
}

/// What comes before and after the first `at` outside quotes; all of it and nothing where there is none.
fn split_unquoted(text: &str, at: u8) -> (&str, &str) {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if byte == at && !is_quoted => return (&text[..place], &text[place + 1..]),
            _ => {}
        }
    }
    (text, "")
}

fn unquoted(text: &str) -> String {
    let Some(inside) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return text.to_owned();
    };
    inside.replace('\\', "")
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    fn seconds_of(lines: &[&str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        lifetime(&headers, now()).map(|lifetime| lifetime.as_secs())
    }

    #[test]
    fn what_says_nothing_lives_as_long_as_its_group() {
        for lines in [
            &[][..],
            &["cache-control: public"],
            &["cache-control: must-revalidate"],
            &["cache-control: "],
            &["cache-control: max-agee=5, ,=3"],
            &["last-modified: Sun, 06 Nov 1994 08:49:37 GMT"],
            &["age: 30"],
            &["vary: accept-encoding", "set-cookie: a=b"],
            &["x: max-age=5", "date: Sun, 06 Nov 1994 08:49:37 GMT"],
        ] {
            assert_eq!(seconds_of(lines), None, "{lines:?}");
        }
    }

    #[test]
    fn what_a_shared_cache_must_not_keep_is_not_kept() {
        for lines in [
            &["cache-control: private"][..],
            &["cache-control: Private, Max-Age=60"],
            &["cache-control: private=\"set-cookie, x\", max-age=60"],
            &["cache-control: no-store, s-maxage=60"],
            &["cache-control: max-age=60", "cache-control: NO-CACHE"],
            &["cache-control: no-cache=\"x\", max-age=60"],
            &["cache-control: max-age=60", "vary: *"],
            &["cache-control: max-age=60", "vary: accept, *"],
            &["cache-control: max-age=60", "vary: accept", "vary: *"],
            &["cache-control: must-understand, private, max-age=60"],
            &["cache-control: \tno-store\t"],
        ] {
            assert_eq!(seconds_of(lines), Some(0), "{lines:?}");
        }
    }

    #[test]
    fn lifetimes_are_read_in_their_order_and_the_age_is_taken_off() {
        let date = "date: Sun, 06 Nov 1994 08:49:37 GMT";
        for (lines, expected) in [
            (&["cache-control: max-age=60"][..], 60),
            (&["cache-control: MAX-AGE=\"60\""], 60),
            (&["cache-control: max-age=60, s-maxage=30", "expires: Sun, 06 Nov 1994 09:49:37 GMT"], 30),
            (&["cache-control: max-age=60", "expires: 0"], 60),
            (&["cache-control: s-maxage=0, max-age=60"], 0),
            (&["cache-control: must-understand, no-store, max-age=60"], 60),
            (&["cache-control: max-age=60", "age: 45"], 15),
            (&["cache-control: max-age=60", "age: 61"], 0),
            (&["cache-control: max-age=60", "age: 10, 50"], 50),
            (&["cache-control: max-age=60", "age: -5"], 60),
            (&["cache-control: max-age=60", "age: 99999999999999999999"], 0),
            (&["cache-control: x=\"max-age=5, private\", max-age=60"], 60),
            (&["cache-control: x=\"\\\", private\", max-age=60"], 60),
            // What cannot be read is stale, and what is too long for us is long.
            (&["cache-control: max-age=-1"], 0),
            (&["cache-control: max-age"], 0),
            (&["cache-control: max-age=1.5"], 0),
            (&["cache-control: max-age=60", "cache-control: max-age=90"], 0),
            (&["cache-control: max-age=60", "cache-control: max-age=60"], 60),
            (&["cache-control: max-age=99999999999999999999"], LONGEST),
            // By the origin's clock; by ours where it does not show its own.
            (&[date, "expires: Sun, 06 Nov 1994 08:50:37 GMT"], 60),
            (&["date: Sun, 06 Nov 1994 07:00:00 GMT", "expires: Sun, 06 Nov 1994 07:01:00 GMT"], 60),
            (&[date, "expires: Sunday, 06-Nov-94 08:50:37 GMT", "age: 20"], 40),
            (&[date, "expires: Sun Nov  6 08:50:37 1994"], 60),
            (&["expires: Sun, 06 Nov 1994 08:50:37 GMT"], 60),
            (&[date, "expires: Sun, 06 Nov 1994 08:49:37 GMT"], 0),
            (&[date, "expires: Sun, 06 Nov 1994 08:00:00 GMT"], 0),
            (&["expires: 0"], 0),
            (&["expires: soon"], 0),
        ] {
            assert_eq!(seconds_of(lines), Some(expected), "{lines:?}");
        }
    }
}

//! Commands: what a request asks for, checked as far as the request alone tells.
//!
//! A command that a cache cannot keep is refused by name, with the reason; none is taken and then done in
//! part.

mod table;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::reply::{Reply, Version};
pub(super) use table::{COMMANDS, Spec};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Get(Bytes),
    GetMany(Vec<Bytes>),
    /// How many of the keys have values.
    Exists(Vec<Bytes>),
    Set {
        key: Bytes,
        value: Bytes,
        ttl: Option<Duration>,
    },
    SetMany(Vec<(Bytes, Bytes)>),
    Delete(Vec<Bytes>),
    /// How long a value stays fresh.
    Lifetime {
        key: Bytes,
        in_seconds: bool,
    },
    Ping(Option<Bytes>),
    Echo(Bytes),
    Hello(Hello),
    Auth(Login),
    Select(Bytes),
    Client(Client),
    Commands(Commands),
    Info,
    Transaction(Transaction),
    Reset,
    Quit,
}

/// A transaction is refused as a whole: what stands in it is not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transaction {
    Begin,
    Execute,
    Discard,
}

impl Transaction {
    const ALL: [(&str, Transaction); 3] =
        [("multi", Transaction::Begin), ("exec", Transaction::Execute), ("discard", Transaction::Discard)];

    fn of(name: &[u8]) -> Option<(&'static str, Self)> {
        Self::ALL.into_iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name))
    }
}

/// Who a caller says that it is. Users are not told apart: a token has a secret, and that is the password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    /// As Redis's user of those who name none.
    pub(super) is_default: bool,
    pub(super) secret: Bytes,
}

/// Without the secret.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// How a client begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: Option<Version>,
    pub(super) login: Option<Login>,
    pub(super) name: Option<Bytes>,
}

/// What a client says or asks of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Id,
    Name,
    SetName(Bytes),
    /// Its library, which nobody asks for.
    SetInfo,
}

/// What is asked about commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Commands {
    All,
    Named(Vec<Bytes>),
    Count,
    /// What is known of them beyond their table: nothing.
    Docs,
}

/// The answer to a request that is refused.
type Refused = Reply;

impl Command {
    /// Reads a request.
    ///
    /// # Errors
    /// The answer, where it is none that can be kept.
    pub(super) fn parse(arguments: Vec<Bytes>) -> Result<Self, Refused> {
        let mut arguments = arguments.into_iter();
        let name = arguments.next().unwrap_or_default();
        let rest = arguments.as_slice();
        if let Some((name, transaction)) = Transaction::of(&name) {
            let is_alone = rest.is_empty();
            return if is_alone { Ok(Command::Transaction(transaction)) } else { Err(wrong_number(name)) };
        }
        let Some(spec) = Spec::of(&name) else {
            let name: String = name.iter().take(128).map(|byte| byte.escape_ascii().to_string()).collect();
            return Err(Reply::error(format!(
                "ERR unknown command '{name}': this is a cache of a Peanut fleet"
            )));
        };
        if !spec.takes(rest.len() + 1) {
            return Err(wrong_number(spec.name));
        }
        let keys = || rest.to_vec();
        let only = || rest[0].clone();
        Ok(match spec.name {
            "get" => Command::Get(only()),
            "mget" => Command::GetMany(keys()),
            "exists" => Command::Exists(keys()),
            "set" => set(rest)?,
            "setex" => set_for(rest, "setex", Duration::from_secs)?,
            "psetex" => set_for(rest, "psetex", Duration::from_millis)?,
            "mset" => set_many(rest)?,
            "del" | "unlink" => Command::Delete(keys()),
            "ttl" => Command::Lifetime { key: only(), in_seconds: true },
            "pttl" => Command::Lifetime { key: only(), in_seconds: false },
            "ping" => Command::Ping(at_most_one(rest, "ping")?),
            "echo" => Command::Echo(only()),
            "hello" => Command::Hello(hello(rest)?),
            "auth" => Command::Auth(auth(rest)?),
            "select" => Command::Select(only()),
            "client" => Command::Client(client(rest)?),
            "command" => Command::Commands(commands(rest)?),
            "info" => Command::Info,
            "reset" => Command::Reset,
            _ => Command::Quit,
        })
    }
}

impl Command {
    /// The keys that it writes.
    pub(super) fn written(&self) -> Vec<&Bytes> {
        match self {
            Command::Set { key, .. } => vec![key],
            Command::SetMany(entries) => entries.iter().map(|(key, _)| key).collect(),
            Command::Delete(keys) => keys.iter().collect(),
            _ => Vec::new(),
        }
    }
}

fn wrong_number(name: &str) -> Refused {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

fn syntax() -> Refused {
    Reply::error("ERR syntax error")
}

fn at_most_one(rest: &[Bytes], name: &str) -> Result<Option<Bytes>, Refused> {
    match rest {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => Err(wrong_number(name)),
    }
}

/// A number as Redis writes them: no plus, no zeros before it.
pub(super) fn number(text: &[u8]) -> Option<i64> {
    let is_strict = matches!(text, [b'0'] | [b'1'..=b'9', ..] | [b'-', b'1'..=b'9', ..]);
    std::str::from_utf8(text).ok().filter(|_| is_strict)?.parse().ok()
}

/// A lifetime of so many seconds or milliseconds, which is above zero.
fn lifetime(count: &Bytes, name: &str, unit: fn(u64) -> Duration) -> Result<Duration, Refused> {
    let count = number(count).ok_or_else(|| Reply::error("ERR value is not an integer or out of range"))?;
    let count = u64::try_from(count).ok().filter(|count| *count > 0);
    count.map(unit).ok_or_else(|| Reply::error(format!("ERR invalid expire time in '{name}' command")))
}

/// `SET key value [EX seconds | PX milliseconds]`.
fn set(rest: &[Bytes]) -> Result<Command, Refused> {
    let [key, value, options @ ..] = rest else { return Err(wrong_number("set")) };
    let (mut ttl, mut options) = (None, options.iter());
    while let Some(option) = options.next() {
        let unit: fn(u64) -> Duration = match &option.to_ascii_lowercase()[..] {
            b"ex" => Duration::from_secs,
            b"px" => Duration::from_millis,
            b"nx" | b"xx" | b"get" | b"keepttl" | b"exat" | b"pxat" | b"ifeq" | b"ifne" | b"ifdeq"
            | b"ifdne" => {
                let option = String::from_utf8_lossy(option).to_ascii_uppercase();
                return Err(Reply::error(format!(
                    "ERR SET with {option} cannot be kept: {}",
                    why_not(&option)
                )));
            }
            _ => return Err(syntax()),
        };
        let count = options.next().ok_or_else(syntax)?;
        if ttl.replace(lifetime(count, "set", unit)?).is_some() {
            return Err(syntax());
        }
    }
    Ok(Command::Set { key: key.clone(), value: value.clone(), ttl })
}

/// Why an option of SET is refused.
fn why_not(option: &str) -> &'static str {
    match option {
        "EXAT" | "PXAT" => "lifetimes are counted from now, by EX or PX",
        "KEEPTTL" => "a cache may have dropped the entry whose lifetime was to stay",
        _ => "a cache may drop an entry at any time, so whether there is one decides nothing",
    }
}

/// `SETEX key seconds value`.
fn set_for(rest: &[Bytes], name: &str, unit: fn(u64) -> Duration) -> Result<Command, Refused> {
    let [key, count, value] = rest else { return Err(wrong_number(name)) };
    let ttl = Some(lifetime(count, name, unit)?);
    Ok(Command::Set { key: key.clone(), value: value.clone(), ttl })
}

/// `MSET key value …`: the last value of a key is the one that counts.
fn set_many(rest: &[Bytes]) -> Result<Command, Refused> {
    let (pairs, []) = rest.as_chunks::<2>() else { return Err(wrong_number("mset")) };
    let mut entries: Vec<(Bytes, Bytes)> = Vec::with_capacity(pairs.len());
    let mut places = HashMap::new();
    for [key, value] in pairs {
        let place = *places.entry(key).or_insert(entries.len());
        match entries.get_mut(place) {
            Some(entry) => entry.1 = value.clone(),
            None => entries.push((key.clone(), value.clone())),
        }
    }
    Ok(Command::SetMany(entries))
}

/// `HELLO [2 | 3 [AUTH user secret] [SETNAME name]]`.
fn hello(rest: &[Bytes]) -> Result<Hello, Refused> {
    let [version, options @ ..] = rest else { return Ok(Hello::default()) };
    let version = match number(version) {
        Some(2) => Version::Resp2,
        Some(3) => Version::Resp3,
        Some(_) => return Err(Reply::error("NOPROTO unsupported protocol version")),
        None => return Err(Reply::error("ERR Protocol version is not an integer or out of range")),
    };
    let mut hello = Hello { version: Some(version), ..Hello::default() };
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match &option.to_ascii_lowercase()[..] {
            b"auth" => {
                let (user, secret) = options.next().zip(options.next()).ok_or_else(syntax)?;
                hello.login = Some(Login { is_default: **user == *b"default", secret: secret.clone() });
            }
            b"setname" => hello.name = Some(name(options.next().ok_or_else(syntax)?)?),
            _ => return Err(syntax()),
        }
    }
    Ok(hello)
}

/// `AUTH [user] secret`.
fn auth(rest: &[Bytes]) -> Result<Login, Refused> {
    match rest {
        [secret] => Ok(Login { is_default: false, secret: secret.clone() }),
        [user, secret] => Ok(Login { is_default: **user == *b"default", secret: secret.clone() }),
        _ => Err(syntax()),
    }
}

/// A connection's name.
fn name(name: &Bytes) -> Result<Bytes, Refused> {
    if name.iter().all(u8::is_ascii_graphic) && name.len() <= 128 {
        return Ok(name.clone());
    }
    Err(Reply::error("ERR Client names cannot contain spaces, newlines or special characters."))
}

fn client(rest: &[Bytes]) -> Result<Client, Refused> {
    let [what, rest @ ..] = rest else { return Err(wrong_number("client")) };
    match (&what.to_ascii_lowercase()[..], rest) {
        (b"id", []) => Ok(Client::Id),
        (b"getname", []) => Ok(Client::Name),
        (b"setname", [given]) => Ok(Client::SetName(name(given)?)),
        (b"setinfo", [_, _]) => Ok(Client::SetInfo),
        (b"tracking", _) => {
            Err(Reply::error("ERR CLIENT TRACKING cannot be kept: the proxy itself has the near copies"))
        }
        (what, _) => {
            let what = what.escape_ascii().to_string();
            Err(Reply::error(format!("ERR unknown subcommand or wrong number of arguments for '{what}'")))
        }
    }
}

fn commands(rest: &[Bytes]) -> Result<Commands, Refused> {
    let [what, rest @ ..] = rest else { return Ok(Commands::All) };
    match &what.to_ascii_lowercase()[..] {
        b"count" => Ok(Commands::Count),
        b"docs" => Ok(Commands::Docs),
        b"info" if rest.is_empty() => Ok(Commands::All),
        b"info" => Ok(Commands::Named(rest.to_vec())),
        what => Err(Reply::error(format!("ERR unknown subcommand '{}'", what.escape_ascii()))),
    }
}

#[cfg(test)]
mod tests;

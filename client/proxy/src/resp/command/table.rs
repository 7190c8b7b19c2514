//! The commands there are, each declared once: what the reader of requests checks, and what `COMMAND` tells.

use crate::resp::reply::Reply;

/// A command.
#[derive(Debug)]
pub(in crate::resp) struct Spec {
    /// In small letters.
    pub(in crate::resp) name: &'static str,
    /// Arguments, the name included; where it is negative, at least so many.
    arity: i32,
    flags: &'static [&'static str],
    /// The first key among the arguments, the last (−1: the last argument), and how far they are apart;
    /// zeros: none.
    keys: (i32, i32, i32),
}

const NO_KEYS: (i32, i32, i32) = (0, 0, 0);
const ONE_KEY: (i32, i32, i32) = (1, 1, 1);
const ALL_KEYS: (i32, i32, i32) = (1, -1, 1);

const fn spec(name: &'static str, arity: i32, flags: &'static [&'static str], keys: (i32, i32, i32)) -> Spec {
    Spec { name, arity, flags, keys }
}

const READ: &[&str] = &["readonly", "fast"];
const WRITE: &[&str] = &["write"];
const TALK: &[&str] = &["fast", "noscript", "loading", "stale"];
const TALK_FIRST: &[&str] = &["fast", "noscript", "loading", "stale", "no_auth"];

/// All commands, in the order of their names.
pub(in crate::resp) const COMMANDS: &[Spec] = &[
    spec("auth", -2, TALK_FIRST, NO_KEYS),
    spec("client", -2, TALK, NO_KEYS),
    spec("command", -1, TALK, NO_KEYS),
    spec("del", -2, WRITE, ALL_KEYS),
    spec("echo", 2, TALK, NO_KEYS),
    spec("exists", -2, READ, ALL_KEYS),
    spec("get", 2, READ, ONE_KEY),
    spec("hello", -1, TALK_FIRST, NO_KEYS),
    spec("info", -1, TALK, NO_KEYS),
    spec("mget", -2, READ, ALL_KEYS),
    spec("mset", -3, WRITE, (1, -1, 2)),
    spec("ping", -1, TALK, NO_KEYS),
    spec("psetex", 4, WRITE, ONE_KEY),
    spec("pttl", 2, READ, ONE_KEY),
    spec("quit", -1, TALK_FIRST, NO_KEYS),
    spec("reset", 1, TALK_FIRST, NO_KEYS),
    spec("select", 2, TALK, NO_KEYS),
    spec("set", -3, WRITE, ONE_KEY),
    spec("setex", 4, WRITE, ONE_KEY),
    spec("ttl", 2, READ, ONE_KEY),
    spec("unlink", -2, WRITE, ALL_KEYS),
];

impl Spec {
    /// The command of a name, in any letters.
    pub(in crate::resp) fn of(name: &[u8]) -> Option<&'static Spec> {
        COMMANDS.iter().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Whether it may have so many arguments.
    pub(super) fn takes(&self, arguments: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { arguments >= least } else { arguments == least }
    }

    /// What it is for, as the access lists of Redis have it.
    fn categories(&self) -> impl Iterator<Item = &'static str> {
        let has = |flag| self.flags.contains(&flag);
        let keys = [("@read", has("readonly")), ("@write", has("write"))];
        let others = [("@fast", has("fast")), ("@connection", self.keys == NO_KEYS)];
        keys.into_iter().chain(others).filter(|(_, is_of)| *is_of).map(|(category, _)| category)
    }

    /// As `COMMAND` of Redis 7 tells it.
    pub(in crate::resp) fn reply(&self) -> Reply {
        let integer = |number: i32| Reply::Integer(number.into());
        let (first, last, step) = self.keys;
        let flags = self.flags.iter().map(|flag| Reply::Simple(flag)).collect();
        let name = Reply::text(self.name);
        Reply::Array(vec![
            name,
            integer(self.arity),
            Reply::Array(flags),
            integer(first),
            integer(last),
            integer(step),
            Reply::Array(self.categories().map(Reply::Simple).collect()),
            // Hints, key specifications and subcommands, of which there is nothing to tell.
            Reply::Array(Vec::new()),
            Reply::Array(Vec::new()),
            Reply::Array(Vec::new()),
        ])
    }
}

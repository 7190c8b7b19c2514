//! Runs commands that go together, and answers them in their order.
//!
//! Where the values of a run grow too long together, the commands behind are left for the next run.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, join4};
use peanut_client::{Error, Group};
use peanut_edge::budget::Held;
use peanut_edge::rights::{Action, Rights};
use peanut_proto::limits::check_key;

use super::Shared;
use super::batches::{Batches, Place, Results};
use super::command::{COMMANDS, Client, Command, Commands, Hello, Login, Spec, Transaction};
use super::database::Key;
use super::reply::{Reply, Version};
use super::session::Session;
use crate::fetch::{Fetch, Fetched, Shortage};
use crate::groups::Groups;

/// Bytes of values that one run of several commands fetches, about.
const MAX_RUN_BYTES: usize = 16 << 20;
/// Bytes of values in the answer to one command.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Commands that have been read, or the answers to what is none.
pub(super) type Read = Result<Command, Reply>;

/// What groups are asked for by the commands that go together.
#[derive(Default)]
struct Calls {
    gets: Batches<Bytes>,
    lifetimes: Batches<Bytes>,
    sets: Batches<(Bytes, Bytes, Option<Duration>)>,
    deletes: Batches<Bytes>,
}

/// What they came to.
struct Called {
    gets: Results<Fetched<Option<Bytes>>>,
    lifetimes: Results<Fetched<Option<Duration>>>,
    sets: Results<Result<(), Error>>,
    deletes: Results<Result<(), Error>>,
}

/// An answer, when the calls are done.
enum Pending {
    Ready(Reply),
    Value(Place),
    Values(Vec<Place>),
    Found(Vec<Place>),
    Lifetime(Place, bool),
    Set(Vec<Place>),
    Deleted(Vec<Place>),
}

/// What a run of commands came to.
pub(super) struct Ran {
    /// The answers to the first of them, as many as there was room for.
    pub(super) replies: Vec<Reply>,
    /// What the values in the answers take.
    pub(super) held: Held,
    /// The answer to the next one, where that is the only command that was to be run.
    pub(super) refusal: Reply,
}

/// Runs commands all at the same time. Where not all are answered, the others read, so that they can be run
/// again. `may_wait`: the connection holds no room for answers, so that it may wait for some.
pub(super) async fn run(shared: &Shared, session: &mut Session, commands: Vec<Read>, may_wait: bool) -> Ran {
    let is_lost = session.look_again(&shared.core.tokens);
    let mut calls = Calls::default();
    let begin = |command: Read| {
        let pending = command.and_then(|command| begin(shared, session, command, &mut calls));
        pending.unwrap_or_else(Pending::Ready)
    };
    let pending: Vec<Pending> = commands.into_iter().map(begin).collect();
    // Who is not known any more is told so once: clients of Redis log in when they connect, and mostly do not
    // again on a connection that stands.
    session.is_over |= is_lost && session.caller.is_none();
    let most = if pending.len() == 1 { MAX_ANSWER_BYTES } else { MAX_RUN_BYTES };
    let fetch = Fetch::new(session.portion, most, session.account(), may_wait);
    let mut called = calls.call(&shared.core.groups, &fetch).await;
    session.portion = fetch.portion();
    let replies = pending
        .into_iter()
        .map(|pending| pending.reply(&mut called).unwrap_or_else(|error| Some(error.into())));
    let replies = replies.map_while(|reply| reply).collect();
    let refusal = Reply::error(match fetch.shortage() {
        Shortage::TooLong => TOO_LONG,
        Shortage::NoRoom => NO_ROOM,
    });
    Ran { replies, held: fetch.into_held(), refusal }
}

const TOO_LONG: &str = "ERR the answer would have more than 64 MiB; ask for fewer keys at once";
const NO_ROOM: &str =
    "BUSY there is no room for so many values now; try again, or ask for fewer keys at once";

/// Does what a command asks of the connection, or notes what it asks of groups.
fn begin(
    shared: &Shared,
    session: &mut Session,
    command: Command,
    calls: &mut Calls,
) -> Result<Pending, Reply> {
    let Some(caller) = &session.caller else {
        return match command {
            Command::Hello(_) | Command::Auth(_) | Command::Reset | Command::Quit => {
                talk(shared, session, command).map(Pending::Ready)
            }
            _ => Err(Reply::error("NOAUTH Authentication required.")),
        };
    };
    if session.is_in_transaction
        && !matches!(command, Command::Transaction(_) | Command::Reset | Command::Quit)
    {
        return Err(Reply::error("ERR not run: the transaction that it stands in was refused"));
    }
    let groups = &shared.core.groups;
    let may = May { shared, rights: caller.rights(), database: session.database };
    let same = |key: Bytes| key;
    Ok(match command {
        Command::Get(name) => Pending::Value(calls.gets.add(groups, may.read(&name)?, same)?),
        Command::GetMany(names) => {
            Pending::Values(add_all(&mut calls.gets, may.all(Action::Read, &names)?, groups)?)
        }
        Command::Exists(names) => {
            Pending::Found(add_all(&mut calls.lifetimes, may.all(Action::Read, &names)?, groups)?)
        }
        Command::Lifetime { key: name, in_seconds } => {
            Pending::Lifetime(calls.lifetimes.add(groups, may.read(&name)?, same)?, in_seconds)
        }
        Command::Set { key: name, value, ttl } => {
            let place = calls.sets.add(groups, may.key(Action::Set, &name)?, |name| (name, value, ttl))?;
            Pending::Set(vec![place])
        }
        Command::SetMany(entries) => {
            let keys = entries.iter().map(|(name, _)| may.key(Action::Set, name));
            let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
            name_all(&keys, groups)?;
            let values = entries.into_iter().map(|(_, value)| value);
            let add = |(key, value)| calls.sets.add(groups, key, |name| (name, value, None));
            Pending::Set(keys.into_iter().zip(values).map(add).collect::<Result<_, _>>()?)
        }
        Command::Delete(names) => {
            Pending::Deleted(add_all(&mut calls.deletes, may.all(Action::Delete, &names)?, groups)?)
        }
        other => Pending::Ready(talk(shared, session, other)?),
    })
}

/// What a caller may do, in the database that it has chosen.
struct May<'a> {
    shared: &'a Shared,
    rights: &'a Rights,
    database: usize,
}

impl May<'_> {
    /// What a name means, if the caller may do this to it.
    fn key(&self, action: Action, name: &Bytes) -> Result<Key, Reply> {
        let key = self.shared.databases.key(self.database, name)?;
        let group = std::str::from_utf8(&key.group);
        let group = group.map_err(|_| Reply::error("ERR the group's name is not text"))?;
        let checked = self.rights.check(action, group, Some(&key.key));
        checked.map_err(|failure| Reply::error(format!("NOPERM {}", failure.message)))?;
        check_key(&key.key).map_err(|why| Reply::error(format!("ERR {why}")))?;
        Ok(key)
    }

    fn read(&self, name: &Bytes) -> Result<Key, Reply> {
        self.key(Action::Read, name)
    }

    fn all(&self, action: Action, names: &[Bytes]) -> Result<Vec<Key>, Reply> {
        names.iter().map(|name| self.key(action, name)).collect()
    }
}

/// Checks the names of all groups before the first key is added. Only a node can say that it has no such
/// group: then others of the command's keys may have been written.
fn name_all(keys: &[Key], groups: &Groups) -> Result<(), Reply> {
    let mut last = None;
    for key in keys {
        if last.replace(&key.group) != Some(&key.group) {
            groups.named(&key.group).map_err(|why| Reply::error(format!("ERR {why}")))?;
        }
    }
    Ok(())
}

/// Adds all keys.
fn add_all(batches: &mut Batches<Bytes>, keys: Vec<Key>, groups: &Groups) -> Result<Vec<Place>, Reply> {
    name_all(&keys, groups)?;
    keys.into_iter().map(|key| batches.add(groups, key, |key| key)).collect()
}

/// Answers what is asked of the proxy itself.
fn talk(shared: &Shared, session: &mut Session, command: Command) -> Result<Reply, Reply> {
    Ok(match command {
        Command::Ping(None) => Reply::Simple("PONG"),
        Command::Ping(Some(message)) | Command::Echo(message) => Reply::Bulk(message),
        Command::Hello(hello) => greet(shared, session, hello)?,
        Command::Auth(login) => log_in(shared, session, &login)?,
        Command::Select(number) => {
            session.database = shared.databases.select(&number)?;
            Reply::OK
        }
        Command::Client(Client::Id) => Reply::Integer(session.id),
        Command::Client(Client::Name) => session.name.clone().map_or(Reply::Null, Reply::Bulk),
        Command::Client(Client::SetName(name)) => {
            session.name = Some(name).filter(|name| !name.is_empty());
            Reply::OK
        }
        Command::Client(Client::SetInfo) => Reply::OK,
        Command::Commands(about) => tell_of(about)?,
        Command::Transaction(step) => transact(session, step)?,
        Command::Info => Reply::text(shared.info()),
        Command::Reset => {
            session.reset(&shared.core);
            Reply::Simple("RESET")
        }
        _ => {
            session.is_over = true;
            Reply::OK
        }
    })
}

/// A fleet has no transactions: nothing of one is run, so that who is told that it has failed may do it
/// again.
fn transact(session: &mut Session, step: Transaction) -> Result<Reply, Reply> {
    let was_begun = std::mem::replace(&mut session.is_in_transaction, step == Transaction::Begin);
    match step {
        Transaction::Begin => Err(Reply::error(
            "ERR MULTI is refused: a fleet of caches has no transactions; send a plain pipeline \
             (redis-py: pipeline(transaction=False))",
        )),
        Transaction::Execute if was_begun => {
            Err(Reply::error("EXECABORT Transaction discarded because of previous errors."))
        }
        Transaction::Execute => Err(Reply::error("ERR EXEC without MULTI")),
        Transaction::Discard if was_begun => Ok(Reply::OK),
        Transaction::Discard => Err(Reply::error("ERR DISCARD without MULTI")),
    }
}

fn tell_of(about: Commands) -> Result<Reply, Reply> {
    Ok(match about {
        Commands::All => Reply::Array(COMMANDS.iter().map(Spec::reply).collect()),
        Commands::Named(names) if names.len() > COMMANDS.len() => {
            return Err(Reply::error(format!("ERR there are {} commands; ask for fewer", COMMANDS.len())));
        }
        Commands::Named(names) => {
            let specs = names.iter().map(|name| Spec::of(name).map_or(Reply::Null, Spec::reply));
            Reply::Array(specs.collect())
        }
        Commands::Count => Reply::count(COMMANDS.len()),
        Commands::Docs => Reply::Map(Vec::new()),
    })
}

fn greet(shared: &Shared, session: &mut Session, hello: Hello) -> Result<Reply, Reply> {
    if let Some(login) = &hello.login {
        log_in(shared, session, login)?;
    }
    if session.caller.is_none() {
        return Err(Reply::error("NOAUTH HELLO must be called with AUTH, or after it"));
    }
    session.version = hello.version.unwrap_or(session.version);
    session.name = hello.name.or(session.name.take());
    let version = if session.version == Version::Resp3 { 3 } else { 2 };
    Ok(Reply::Map(vec![
        ("server", Reply::text("peanut")),
        ("version", Reply::text(env!("CARGO_PKG_VERSION"))),
        ("proto", Reply::Integer(version)),
        ("id", Reply::Integer(session.id)),
        ("mode", Reply::text("standalone")),
        ("role", Reply::text("master")),
        ("modules", Reply::Array(Vec::new())),
    ]))
}

fn log_in(shared: &Shared, session: &mut Session, login: &Login) -> Result<Reply, Reply> {
    if shared.core.tokens.are_none() {
        // The user of a Redis without a password has any.
        if login.is_default {
            return Ok(Reply::OK);
        }
        return Err(Reply::error("ERR AUTH was called, and this proxy has no tokens"));
    }
    let secret = std::str::from_utf8(&login.secret).unwrap_or_default();
    let admitted = session.log_in(&shared.core, secret);
    admitted.map_err(|failure| Reply::error(format!("WRONGPASS {}", failure.message)))?;
    Ok(Reply::OK)
}

impl Calls {
    async fn call(self, groups: &Groups, fetch: &Fetch) -> Called {
        let get = |group: Group, keys: Vec<Bytes>| async move { fetch.get(groups, &group, &keys).await };
        let lifetime =
            |group: Group, keys: Vec<Bytes>| async move { fetch.lifetimes(groups, &group, &keys).await };
        let set = |group: Group, entries| async move {
            let results = set(&group, entries).await;
            groups.heed(&group, &results);
            results
        };
        let delete = |group: Group, keys: Vec<Bytes>| async move {
            let results = group.delete_many(keys).await;
            groups.heed(&group, &results);
            results
        };
        let (gets, lifetimes, sets, deletes) = join4(
            self.gets.call(get),
            self.lifetimes.call(lifetime),
            self.sets.call(set),
            self.deletes.call(delete),
        )
        .await;
        Called { gets, lifetimes, sets, deletes }
    }
}

/// Sets the values of a group; those without a lifetime of their own go together.
async fn set(group: &Group, entries: Vec<(Bytes, Bytes, Option<Duration>)>) -> Vec<Result<(), Error>> {
    if entries.iter().all(|(_, _, ttl)| ttl.is_none()) && entries.len() > 1 {
        return group.set_many(entries.into_iter().map(|(key, value, _)| (key, value))).await;
    }
    let set = |(key, value, ttl): (Bytes, Bytes, Option<Duration>)| async move {
        match ttl {
            None => group.set(key, value).await,
            Some(ttl) => group.set_with_ttl(key, value, ttl).await,
        }
    };
    join_all(entries.into_iter().map(set)).await
}

impl Pending {
    /// The answer; `None`: not all that it needs was fetched.
    fn reply(self, called: &mut Called) -> Result<Option<Reply>, Error> {
        let value = |value: Option<Bytes>| value.map_or(Reply::Null, Reply::Bulk);
        Ok(Some(match self {
            Pending::Ready(reply) => reply,
            Pending::Value(place) => match called.gets.take(place) {
                Some(got) => value(got?),
                None => return Ok(None),
            },
            Pending::Values(places) => match all_fetched(places, &mut called.gets)? {
                Some(values) => Reply::Array(values.into_iter().map(value).collect()),
                None => return Ok(None),
            },
            Pending::Found(places) => match all_fetched(places, &mut called.lifetimes)? {
                Some(values) => Reply::count(values.iter().flatten().count()),
                None => return Ok(None),
            },
            Pending::Lifetime(place, in_seconds) => match called.lifetimes.take(place) {
                Some(got) => lifetime(got?, in_seconds),
                None => return Ok(None),
            },
            Pending::Set(places) => {
                all(places, &mut called.sets)?;
                Reply::OK
            }
            Pending::Deleted(places) => Reply::count(all(places, &mut called.deletes)?.len()),
        }))
    }
}

/// All values, or the first error; `None` where one was not fetched.
fn all_fetched<T>(
    places: Vec<Place>,
    results: &mut Results<Fetched<Option<T>>>,
) -> Result<Option<Vec<Option<T>>>, Error> {
    let fetched: Option<Vec<_>> = places.into_iter().map(|place| results.take(place)).collect();
    fetched.map(|fetched| fetched.into_iter().collect()).transpose()
}

/// All results, or the first error.
fn all(places: Vec<Place>, results: &mut Results<Result<(), Error>>) -> Result<Vec<()>, Error> {
    let results: Vec<_> = places.into_iter().map(|place| results.take(place)).collect();
    results.into_iter().collect()
}

/// How long a value stays fresh, as TTL says it: −2 where there is no such key.
fn lifetime(lifetime: Option<Duration>, in_seconds: bool) -> Reply {
    let Some(lifetime) = lifetime else { return Reply::Integer(-2) };
    let ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
    Reply::Integer(if in_seconds { ms.saturating_add(500) / 1000 } else { ms })
}

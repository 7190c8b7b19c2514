//! Which commands of a pipeline may run at the same time.
//!
//! A client that sends many commands at once reads the answers in order, and each command has to see those
//! before it. Gets can go together, and so can writes of different keys; a get waits for the writes before
//! it.

use std::collections::HashSet;

use bytes::Bytes;

use super::command::Command;
use super::database::Key;

/// What a command does to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Nothing.
    Nothing,
    Reads,
    Writes,
    /// It changes the connection, so that it goes alone.
    Alone,
}

impl Access {
    fn of(command: &Command) -> Access {
        match command {
            Command::Get(_) | Command::GetMany(_) | Command::Exists(_) | Command::Lifetime { .. } => {
                Access::Reads
            }
            Command::Set { .. } | Command::SetMany(_) | Command::Delete(_) => Access::Writes,
            Command::Ping(_) | Command::Echo(_) | Command::Commands(_) | Command::Info => Access::Nothing,
            Command::Hello(_)
            | Command::Auth(_)
            | Command::Select(_)
            | Command::Client(_)
            | Command::Transaction(_)
            | Command::Reset
            | Command::Quit => Access::Alone,
        }
    }
}

/// How many commands from the first on may run at the same time: at least one where there is one. `key` tells
/// what a key means, where it means one.
pub(super) fn together<'c>(
    commands: impl IntoIterator<Item = Option<&'c Command>>,
    key: impl Fn(&Bytes) -> Option<Key>,
) -> usize {
    let (mut kind, mut keys, mut count) = (Access::Nothing, HashSet::new(), 0);
    for command in commands {
        // What was refused has its answer.
        let access = command.map_or(Access::Nothing, Access::of);
        match (kind, access) {
            (_, Access::Nothing) => {}
            (_, Access::Alone) => return count.max(1),
            (Access::Nothing, _) => kind = access,
            (kind, access) if kind == access => {}
            _ => return count,
        }
        if let Some(command) = command.filter(|_| access == Access::Writes) {
            let own: Vec<_> = command.written().into_iter().filter_map(&key).collect();
            if own.iter().any(|key| keys.contains(key)) {
                return count;
            }
            keys.extend(own);
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::database::Databases;

    /// How commands, one a line, are divided.
    fn divided(lines: &[&str]) -> Vec<usize> {
        let databases = Databases::new(Some("g".to_owned()), []);
        let commands: Vec<_> = lines
            .iter()
            .map(|line| {
                Command::parse(line.split(' ').map(|it| Bytes::from((*it).to_owned())).collect()).ok()
            })
            .collect();
        let (mut rest, mut parts) = (&commands[..], Vec::new());
        while !rest.is_empty() {
            let count = together(rest.iter().map(Option::as_ref), |key| databases.key(0, key).ok());
            parts.push(count);
            rest = &rest[count..];
        }
        parts
    }

    #[test]
    fn gets_go_together_and_so_do_writes_of_different_keys() {
        assert_eq!(divided(&["GET a", "GET a", "PING", "MGET a b", "TTL a", "NONSENSE", "EXISTS c"]), [7]);
        assert_eq!(divided(&["SET a 1", "SET b 1", "DEL c", "MSET d 1 e 2"]), [4]);
    }

    #[test]
    fn a_command_sees_those_before_it() {
        assert_eq!(
            divided(&["SET a 1", "GET a", "SET a 2", "SET a 3", "DEL a b", "SET b 1"]),
            [1, 1, 1, 1, 1, 1]
        );
        assert_eq!(divided(&["GET a", "SET b 1", "SET c 1", "GET b"]), [1, 2, 1]);
        assert_eq!(divided(&["MSET a 1 a 2", "DEL b b"]), [2], "a command's own keys are its own affair");
    }

    #[test]
    fn what_changes_the_connection_goes_alone() {
        assert_eq!(divided(&["GET a", "SELECT 1", "GET a", "AUTH x", "QUIT"]), [1, 1, 1, 1, 1]);
    }
}

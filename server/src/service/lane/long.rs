//! Values of a lane that are longer than a frame, on their way out: in pieces, one value after the other.

use std::collections::VecDeque;

use bytes::Bytes;
use peanut_proto::frame::{FRAME_BYTES, Target};

use crate::budget::{Account, Held};

/// Bytes of values that wait to be sent on one lane from which on nothing more is begun on it.
const MAX_BYTES: usize = 64 << 20;

/// The values of one lane.
#[derive(Debug, Default)]
pub(super) struct LongValues {
    values: VecDeque<LongValue>,
    bytes: usize,
}

/// What is left to send of one.
#[derive(Debug)]
struct LongValue {
    to: Target,
    rest: Bytes,
    _held: Held,
}

impl LongValues {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES
    }

    /// Room for one more of that length. For the only one of a lane there is some set aside, so that a caller
    /// among others that hold all the rest has its values one after the other.
    pub(super) fn room(&self, account: &Account, length: usize) -> Option<Held> {
        let spare = || if self.is_empty() { account.spare.try_take(length) } else { None };
        account.values.try_take(length).or_else(spare)
    }

    pub(super) fn push(&mut self, to: Target, value: Bytes, held: Held) {
        self.bytes += value.len();
        self.values.push_back(LongValue { to, rest: value, _held: held });
    }

    /// The next piece of the value whose turn it is.
    pub(super) fn next_piece(&mut self) -> Option<(Target, Bytes)> {
        let mut value = self.values.pop_front()?;
        let (to, piece) = (value.to, value.rest.split_to(value.rest.len().min(FRAME_BYTES)));
        self.bytes -= piece.len();
        if !value.rest.is_empty() {
            self.values.push_back(value);
        }
        Some((to, piece))
    }
}

//! Budgets in bytes: how much memory the operations of a connection, of a token and of the whole node may
//! hold.
//!
//! Budgets form a tree. A child has a limit of its own and never holds more than its parent has free, so that
//! one that takes all it can leaves as much for the next (Choudhury and Hahne, "Dynamic Queue Length
//! Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 1998): alone it gets
//! half of the parent's limit, beside `n` others that take all they can a part of `n + 2`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes that may be held at a time.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    parent: Option<Arc<Budget>>,
    /// Those who wait for room take turns.
    turn: tokio::sync::Mutex<()>,
    /// At the root: how many wait, and what wakes them when anything is given back anywhere in the tree.
    waiting: AtomicUsize,
    freed: Notify,
}

/// Bytes taken from a budget and from all above it, until this is dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// The budget that all others take part in.
    pub fn root(limit: usize) -> Arc<Self> {
        Budget::new(limit, None)
    }

    /// A part of this budget, with a limit of its own.
    pub fn child(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Budget::new(limit, Some(self.clone()))
    }

    fn new(limit: usize, parent: Option<Arc<Budget>>) -> Arc<Self> {
        let (turn, freed) = (tokio::sync::Mutex::new(()), Notify::new());
        Arc::new(Budget {
            limit,
            used: AtomicUsize::new(0),
            parent,
            turn,
            waiting: AtomicUsize::new(0),
            freed,
        })
    }

    /// Takes bytes where there is room for them now.
    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        self.take_up(bytes).then(|| Held { budget: self.clone(), bytes })
    }

    /// Takes no bytes, for which there always is room.
    pub fn take_nothing(self: &Arc<Self>) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }

    /// Takes bytes, in turn, when there is room for them. More than can ever be held is taken for as much as
    /// can.
    pub async fn take(self: &Arc<Self>, bytes: usize) -> Held {
        self.take_estimated(|| bytes).await
    }

    /// As [`take`](Self::take), for an amount that is estimated anew whenever something is given back.
    pub async fn take_estimated(self: &Arc<Self>, bytes: impl Fn() -> usize) -> Held {
        let _turn = self.turn.lock().await;
        let root = self.root_of();
        root.waiting.fetch_add(1, Ordering::SeqCst);
        let _leave = Leave(root);
        loop {
            // Before the look, so that what is freed after it is heard.
            let freed = root.freed.notified();
            if let Some(held) = self.try_take(bytes().min(self.most())) {
                return held;
            }
            freed.await;
        }
    }

    /// The most that this one can ever hold alone.
    pub fn most(&self) -> usize {
        self.parent.as_ref().map_or(self.limit, |parent| self.limit.min(parent.most() / 2))
    }

    /// Bytes that are held.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes from the leaf to the root, so that what is undone again was never in anybody's way.
    fn take_up(&self, bytes: usize) -> bool {
        let free =
            self.parent.as_ref().map_or(usize::MAX, |parent| parent.limit.saturating_sub(parent.used()));
        let limit = self.limit.min(free);
        let within = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
        if self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, within).is_err() {
            return false;
        }
        let is_taken = self.parent.as_ref().is_none_or(|parent| parent.take_up(bytes));
        if !is_taken {
            self.used.fetch_sub(bytes, Ordering::SeqCst);
        }
        is_taken
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        match &self.parent {
            Some(parent) => parent.give_back(bytes),
            None if self.waiting.load(Ordering::SeqCst) > 0 => self.freed.notify_waiters(),
            None => {}
        }
    }

    fn root_of(&self) -> &Budget {
        self.parent.as_ref().map_or(self, |parent| parent.root_of())
    }
}

impl Held {
    /// These bytes and others of the same budget, as one.
    ///
    /// # Panics
    /// Where they are of another budget.
    #[must_use]
    pub fn and(mut self, mut other: Held) -> Held {
        assert!(self.is_of(&other.budget), "of one budget");
        self.bytes += std::mem::take(&mut other.bytes);
        self
    }

    /// Whether they are of this budget.
    pub fn is_of(&self, budget: &Arc<Budget>) -> bool {
        Arc::ptr_eq(&self.budget, budget)
    }

    /// How many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back all but so many of these bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let more = self.bytes.saturating_sub(bytes);
        if more > 0 {
            self.bytes -= more;
            self.budget.give_back(more);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

struct Leave<'a>(&'a Budget);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the lanes and unary calls of one connection may hold that come with the same token.
#[derive(Debug)]
pub struct Account {
    /// For operations that wait: each counts its key and [`OPERATION_BYTES`].
    pub operations: Arc<Budget>,
    /// For the values that they wait for, and that are on their way out.
    pub values: Arc<Budget>,
    /// For one long value of each lane at a time, where others hold all the room for values.
    pub spare: Arc<Budget>,
    /// For long messages on their way in.
    pub incoming: Arc<Budget>,
    /// What it is a part of: a token is known for as long as any account is a part of its own.
    _above: Option<Arc<Account>>,
}

/// What an operation that waits takes beside its key.
pub const OPERATION_BYTES: usize = 1 << 10;

/// The budgets of a node, from which those of tokens and connections come.
#[derive(Clone, Debug)]
pub struct Budgets {
    node: Arc<Account>,
    /// By name, of the tokens that are in use.
    tokens: Arc<Mutex<HashMap<Arc<str>, Weak<Account>>>>,
    /// For values that are being loaded.
    pub loading: Arc<Budget>,
}

impl Budgets {
    /// For all operations of the node that wait.
    pub const NODE_OPERATIONS: usize = 512 << 20;
    /// For those of all callers with one token.
    pub const TOKEN_OPERATIONS: usize = 256 << 20;
    /// For those of one connection: as many as a client has in flight to a node by default.
    pub const CONNECTION_OPERATIONS: usize = 64 << 20;
    /// For all values of the node that are waited for or sent.
    pub const NODE_VALUES: usize = 512 << 20;
    /// For those of all callers with one token.
    pub const TOKEN_VALUES: usize = 256 << 20;
    /// For those of one connection.
    pub const CONNECTION_VALUES: usize = 64 << 20;
    /// For all long messages of the node on their way in.
    pub const NODE_INCOMING: usize = 512 << 20;
    /// For those of all callers with one token.
    pub const TOKEN_INCOMING: usize = 256 << 20;
    /// For those of one connection.
    pub const CONNECTION_INCOMING: usize = 128 << 20;
    /// For single long values of the node's lanes, beside all the others.
    pub const NODE_SPARE: usize = 128 << 20;
    /// For those of all callers with one token.
    pub const TOKEN_SPARE: usize = 64 << 20;
    /// For those of one connection.
    pub const CONNECTION_SPARE: usize = 16 << 20;
    /// For values that are being loaded.
    pub const LOADING: usize = 256 << 20;

    /// The budgets of one node, of which nothing is held yet.
    #[expect(clippy::new_without_default, reason = "each is another node's: they are made on purpose")]
    pub fn new() -> Self {
        let (operations, values) =
            (Budget::root(Budgets::NODE_OPERATIONS), Budget::root(Budgets::NODE_VALUES));
        let (spare, incoming) = (Budget::root(Budgets::NODE_SPARE), Budget::root(Budgets::NODE_INCOMING));
        Budgets {
            node: Arc::new(Account { operations, values, spare, incoming, _above: None }),
            tokens: Arc::default(),
            loading: Budget::root(Budgets::LOADING),
        }
    }

    /// What one more connection may hold, as far as its callers show this token; an empty name where the node
    /// has no tokens.
    pub fn account(&self, token: &Arc<str>) -> Arc<Account> {
        let above = if token.is_empty() { self.node.clone() } else { self.of_token(token) };
        Arc::new(above.part(
            Budgets::CONNECTION_OPERATIONS,
            Budgets::CONNECTION_VALUES,
            Budgets::CONNECTION_SPARE,
            Budgets::CONNECTION_INCOMING,
        ))
    }

    fn of_token(&self, token: &Arc<str>) -> Arc<Account> {
        let mut tokens = self.tokens.lock();
        if let Some(account) = tokens.get(token).and_then(Weak::upgrade) {
            return account;
        }
        tokens.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(self.node.part(
            Budgets::TOKEN_OPERATIONS,
            Budgets::TOKEN_VALUES,
            Budgets::TOKEN_SPARE,
            Budgets::TOKEN_INCOMING,
        ));
        tokens.insert(token.clone(), Arc::downgrade(&account));
        account
    }
}

impl Account {
    fn part(self: &Arc<Self>, operations: usize, values: usize, spare: usize, incoming: usize) -> Self {
        Account {
            operations: self.operations.child(operations),
            values: self.values.child(values),
            spare: self.spare.child(spare),
            incoming: self.incoming.child(incoming),
            _above: Some(self.clone()),
        }
    }

    /// Tells accounts apart.
    pub fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

/// Room that an account has given for a value before its length was known.
#[derive(Clone, Debug)]
pub struct Reservation {
    account: Arc<Account>,
    bytes: usize,
}

impl Reservation {
    /// For what waits, and `value` bytes.
    pub fn new(account: &Arc<Account>, value: usize) -> Self {
        Reservation { account: account.clone(), bytes: value + OPERATION_BYTES }
    }

    /// Takes what a value needs beyond that; `None` where there is no room for it.
    pub fn extend_to(&self, length: usize) -> Option<Held> {
        match length.saturating_sub(self.bytes) {
            0 => Some(self.account.values.take_nothing()),
            more => self.account.values.try_take(more),
        }
    }
}

/// The accounts of one connection: one for each token that its callers show.
#[derive(Debug)]
pub struct Accounts {
    budgets: Budgets,
    by_token: Mutex<Vec<(Arc<str>, Arc<Account>)>>,
    /// Lanes that are open.
    lanes: Arc<AtomicUsize>,
}

/// One of the lanes that a connection may have open, until this is dropped.
#[derive(Debug)]
pub struct OpenLane(Arc<AtomicUsize>);

impl Drop for OpenLane {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Accounts {
    /// Lanes that one connection may have open.
    pub const MAX_LANES: usize = 16;

    /// A connection's, from these budgets.
    pub fn new(budgets: Budgets) -> Arc<Self> {
        Arc::new(Accounts { budgets, by_token: Mutex::default(), lanes: Arc::default() })
    }

    /// The account for this token; an empty name where the node has no tokens.
    pub fn of(&self, token: &Arc<str>) -> Arc<Account> {
        let mut by_token = self.by_token.lock();
        if let Some((_, account)) = by_token.iter().find(|(name, _)| name == token) {
            return account.clone();
        }
        let account = self.budgets.account(token);
        by_token.push((token.clone(), account.clone()));
        account
    }

    /// Counts one more lane; `None` where there are as many as may be.
    pub fn open_lane(&self) -> Option<OpenLane> {
        let lane = OpenLane(self.lanes.clone());
        (self.lanes.fetch_add(1, Ordering::SeqCst) < Accounts::MAX_LANES).then_some(lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_never_holds_more_than_its_parent_has_free() {
        let node = Budget::root(1000);
        let [greedy, other] = [0, 1].map(|_| node.child(1000));
        let held: Vec<_> = std::iter::from_fn(|| greedy.try_take(10)).collect();
        assert_eq!((greedy.used(), node.used()), (500, 500), "half of what there is");
        let beside: Vec<_> = std::iter::from_fn(|| other.try_take(10)).collect();
        assert_eq!(other.used(), 250, "half of what is left");
        drop(held);
        assert_eq!(node.used(), 250);
        drop(beside);
        assert_eq!((node.used(), greedy.used(), other.used()), (0, 0, 0));
    }

    #[test]
    fn limits_hold_at_every_level_and_a_refusal_leaves_nothing_behind() {
        let node = Budget::root(1000);
        let token = node.child(100);
        let connection = token.child(70);
        let held = connection.try_take(50).unwrap();
        assert!(connection.try_take(30).is_none(), "the connection's own limit");
        let beside = token.child(70);
        assert!(beside.try_take(60).is_none(), "the token's");
        assert_eq!((node.used(), token.used(), connection.used(), beside.used()), (50, 50, 50, 0));
        drop(held);
        assert!(node.child(2000).try_take(usize::MAX).is_none());
        assert_eq!(node.used(), 0);
    }

    #[tokio::test]
    async fn who_waits_has_room_in_turn_wherever_it_is_freed() {
        let node = Budget::root(100);
        let [a, b, c] = [0, 1, 2].map(|_| node.child(100));
        let (first, beside) = (a.take(50).await, b.take(20).await);
        let waiting = tokio::spawn({
            let c = c.clone();
            async move { c.take(40).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        let third = waiting.await.unwrap();
        assert_eq!(node.used(), 60);
        drop((beside, third));
        assert_eq!(a.take(1000).await.bytes, 50, "all that it can have, for who asks for more");
    }

    #[tokio::test]
    async fn what_is_given_back_of_bytes_that_are_held_is_there_for_who_waits() {
        let node = Budget::root(100);
        let [a, b, c] = [0, 1, 2].map(|_| node.child(100));
        let (mut held, other) = (a.take(50).await, c.take(20).await);
        let waiting = tokio::spawn(async move { b.take(40).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.shrink_to(70);
        assert_eq!((held.bytes(), a.used()), (50, 50), "more than there is changes nothing");
        held.shrink_to(20);
        let beside = waiting.await.unwrap();
        assert_eq!((held.bytes(), a.used(), node.used()), (20, 20, 80));
        drop((held, beside, other));
        assert_eq!(node.used(), 0);
    }
}

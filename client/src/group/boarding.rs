//! Keys that may have to be loaded by this caller: each owner is asked for all of its keys in one operation,
//! and its answers are taken as they come, since some keys are being loaded by others.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use peanut_proto::numbers::FillToken;
use peanut_proto::v1::{OnMiss, Outcome};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::Group;
use crate::error::{Error, ErrorKind};
use crate::lane::{Answer, EachSender, STANDSTILL};
use crate::many::{self, OfOwner};
use crate::node::Node;
use crate::refusal::Refusal;
use crate::request::{Key, Op, Request};
use crate::routing::Routing;
use crate::shared::Answered;

/// What a key that may have to be loaded by this caller came to.
pub(super) enum Boarded {
    Answered(Result<Option<Bytes>, Error>),
    /// This caller is to load it, and holds the fill token.
    Leads(Answered),
    /// No node can be asked.
    Unreachable(Error),
}

/// What a key came to, by its place in the call.
pub(super) type Came = (usize, Boarded);

pub(super) struct Boarding<'a> {
    group: &'a Group,
    keys: &'a [&'a Bytes],
    routing: Arc<Routing>,
    deadline: Instant,
    /// The keys that owners were asked for, in the order in which they were, by their places in the call,
    /// each with its owner. What has been answered is `None`.
    asked: Vec<Option<(usize, Arc<Node>)>>,
    unanswered: usize,
    answers: mpsc::UnboundedReceiver<(usize, Answer)>,
    /// Lanes of theirs have drivers on other runtimes, which may stand still.
    afar: Vec<Arc<Node>>,
    /// Keys that are asked for one by one: of owners that are down, or have just changed, or did not answer.
    alone: FuturesUnordered<BoxFuture<'a, Came>>,
    ready: VecDeque<Came>,
}

impl<'a> Boarding<'a> {
    /// Asks for keys that are all different.
    pub(super) fn new(group: &'a Group, keys: &'a [&'a Bytes], now: Instant) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        let mut boarding = Boarding {
            group,
            keys,
            routing: group.client.routing.get(),
            deadline: now + group.deadline,
            asked: Vec::with_capacity(keys.len()),
            unanswered: 0,
            answers,
            afar: Vec::new(),
            alone: FuturesUnordered::new(),
            ready: VecDeque::new(),
        };
        let trace = group.client.config.traceparent();
        let op = Op::Get { on_miss: OnMiss::Lease, token: FillToken::NONE, near: false };
        let request = Request { op, traceparent: &trace, ..group.request(&[], now) };
        let (routing, mut good) = (boarding.routing.clone(), Vec::with_capacity(keys.len()));
        for (at, key) in keys.iter().enumerate() {
            match group.check(key).map(|()| group.hasher.hash(key)) {
                Ok(hash) => match group.near_copy(key, hash) {
                    Ok(value) => boarding.ready.push_back((at, Boarded::Answered(Ok(value)))),
                    Err(_) => good.push((at, Key { bytes: key, hash })),
                },
                Err(error) => boarding.ready.push_back((at, Boarded::Answered(Err(error)))),
            }
        }
        let (by_owner, alone) = many::by_owner(&routing, good, group.client.config.hand_over, now);
        for of_owner in by_owner {
            boarding.ask(&request, of_owner, &sender, now);
        }
        alone.into_iter().for_each(|at| boarding.ask_alone(at));
        boarding
    }

    fn ask(&mut self, request: &Request<'_>, of_owner: OfOwner<'_>, sender: &EachSender, now: Instant) {
        let OfOwner { owner, keys, places } = of_owner;
        let (first, version) = (self.asked.len(), self.routing.ring.version());
        self.group.client.budget.deposit_for(keys.len());
        let Some(is_afar) = owner.get_each(request, version, &keys, (sender, first), now) else {
            return places.into_iter().for_each(|at| self.ask_alone(at));
        };
        self.unanswered += keys.len();
        self.asked.extend(places.into_iter().map(|at| Some((at, owner.clone()))));
        self.afar.extend(is_afar.then(|| owner.clone()));
    }

    fn ask_alone(&mut self, at: usize) {
        let (group, key) = (self.group, self.keys[at]);
        let deadline = self.deadline;
        self.alone.push(Box::pin(async move { (at, group.board(key, deadline).await) }));
    }

    /// Whether some keys have not come to anything yet.
    pub(super) fn is_over(&self) -> bool {
        self.ready.is_empty() && self.unanswered == 0 && self.alone.is_empty()
    }

    /// The next key that has come to something; `None` when all have. Nothing is lost where this is dropped.
    pub(super) async fn next(&mut self) -> Option<Came> {
        loop {
            if let Some(came) = self.ready.pop_front() {
                return Some(came);
            }
            tokio::select! {
                biased;
                answer = answer_of(&mut self.answers, &self.afar), if self.unanswered > 0 => self.take(answer),
                Some(came) = self.alone.next(), if !self.alone.is_empty() => return Some(came),
                else => return None,
            }
        }
    }

    /// Takes in an answer; `None`: there will be no more.
    fn take(&mut self, answer: Option<(usize, Answer)>) {
        let Some((position, answer)) = answer else {
            self.unanswered = 0;
            for (at, _) in std::mem::take(&mut self.asked).into_iter().flatten() {
                self.ask_alone(at);
            }
            return;
        };
        let Some((at, node)) = self.asked.get_mut(position).and_then(Option::take) else { return };
        self.unanswered -= 1;
        let (group, ring_version) = (self.group, self.routing.ring.version());
        let boarded = match node.answered(answer, self.deadline) {
            Ok(reply) => {
                let reply = group.client.heed(&node, reply, ring_version);
                // Before it is known which ring that is, the answer is not known to stand.
                if reply.ring_version > ring_version && reply.outcome != Outcome::Fill {
                    return self.ask_alone(at);
                }
                let answered = Answered { reply, node, failover: false, ring_version };
                match answered.reply.outcome {
                    Outcome::Fill => Boarded::Leads(answered),
                    _ => Boarded::Answered(group.settle(Ok(answered))),
                }
            }
            Err(refusal) => {
                let is_final = matches!(refusal, Refusal::Final(_));
                if !is_final && group.client.budget.withdraw() {
                    return self.ask_alone(at);
                }
                match refusal.into_error() {
                    // The application's own origin may well be there.
                    error if error.kind() == ErrorKind::Unavailable => Boarded::Unreachable(error),
                    error => Boarded::Answered(group.settle(Err(error))),
                }
            }
        };
        self.ready.push_back((at, boarded));
    }
}

/// The next answer. Where drivers are on other runtimes, lanes of which nothing is heard are looked at.
async fn answer_of(
    answers: &mut mpsc::UnboundedReceiver<(usize, Answer)>,
    afar: &[Arc<Node>],
) -> Option<(usize, Answer)> {
    if afar.is_empty() {
        return answers.recv().await;
    }
    loop {
        match timeout(STANDSTILL, answers.recv()).await {
            Ok(answer) => return answer,
            Err(_) => afar.iter().for_each(|node| node.leave_if_still()),
        }
    }
}

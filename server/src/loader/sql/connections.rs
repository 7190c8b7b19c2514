//! The connections to one database: checked out by one load at a time, given back only when they are known to
//! be sound.
//!
//! A connection goes back to the pool when its load has ended with an answer, be it an error of the
//! database's. One on which a load was given up, or that broke, is dropped, and with it all that are idle:
//! what silenced one (a failover, a firewall that forgot its flows) has silenced those as well. A load whose
//! connection had served before and broke without an answer is done once more on a new connection. It knows
//! nothing of queries.

use std::fmt::Debug;
use std::io::{Error as IoError, ErrorKind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::ConnectOptions as _;

use super::Database;
use super::rows::Rows;

/// A connection that nobody has used for so long is not used any more.
const MOST_IDLE: Duration = Duration::from_secs(5 * 60);
/// The database itself ends a statement in time and says so. A silent one gets half as long again as a
/// statement may take, at least and at most so much.
const GRACE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));

/// How connections to one kind of database are made, and what their errors mean.
#[async_trait]
pub(super) trait Dialect: Debug + Send + Sync + Sized + 'static {
    type Database: sqlx::Database;

    fn options(&self) -> &Options<Self>;

    /// The first row's value for a key.
    async fn one(
        &self,
        connection: &mut Connection<Self>,
        query: &str,
        key: &[u8],
    ) -> Result<Option<Bytes>, sqlx::Error>;

    /// The rows for keys; `texts` are the same keys.
    async fn many(
        &self,
        connection: &mut Connection<Self>,
        query: &str,
        keys: &[Bytes],
        texts: &[&str],
    ) -> Result<Rows, sqlx::Error>;

    /// Names the database, without secrets.
    fn name(&self) -> String;

    /// Prepares a new connection.
    async fn prepare(&self, _connection: &mut Connection<Self>) -> Result<(), sqlx::Error> {
        Ok(())
    }

    /// Whether this answer says that the connection, rather than the statement, has failed.
    fn ends_connection(&self, error: &dyn sqlx::error::DatabaseError) -> bool;
}

pub(super) type Connection<D> = <<D as Dialect>::Database as sqlx::Database>::Connection;
pub(super) type Options<D> = <Connection<D> as sqlx::Connection>::Options;

pub(super) struct Connections<D: Dialect> {
    pool: Pool<Dialer<D>>,
    timeout: Duration,
    /// How often the database has answered.
    answers: AtomicU64,
}

#[derive(Debug)]
struct Dialer<D>(D, Duration);

impl<D: Dialect> Manager for Dialer<D> {
    type Type = Connection<D>;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Self::Type, sqlx::Error> {
        // Others may be answered meanwhile, so that this one would be waited for.
        let connecting = async {
            let mut connection = self.0.options().connect().await?;
            self.0.prepare(&mut connection).await?;
            Ok(connection)
        };
        tokio::time::timeout(self.1, connecting).await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    async fn recycle(&self, _: &mut Self::Type, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.last_used() > MOST_IDLE {
            return Err(RecycleError::message("idle for long"));
        }
        Ok(())
    }
}

impl<D: Dialect> Debug for Connections<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

/// A connection on loan, which is dropped with its loan. A load that is given up drops it without a word; the
/// idle ones go with it, unless the database has answered others meanwhile.
struct Loan<'a, D: Dialect> {
    from: &'a Connections<D>,
    connection: Option<Object<Dialer<D>>>,
    /// How often the database had answered when it began.
    answers: u64,
}

/// What the database said; or that it said nothing.
type Answer<T> = Result<Result<T, sqlx::Error>, sqlx::Error>;

impl<D: Dialect> Loan<'_, D> {
    fn connection(&mut self) -> Result<&mut Connection<D>, sqlx::Error> {
        self.connection.as_deref_mut().ok_or(sqlx::Error::PoolClosed)
    }

    /// Whether a load before this one had an answer on it.
    fn has_served(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| Object::metrics(connection).recycle_count > 0)
    }
}

impl<D: Dialect> Drop for Loan<'_, D> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        drop(Object::take(connection));
        if self.from.answers.load(Ordering::Relaxed) == self.answers {
            self.from.drop_idle();
        }
    }
}

impl<D: Dialect> Connections<D> {
    pub(super) fn new(dialect: D, most: u32, timeout: Duration) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let pool = Pool::builder(Dialer(dialect, timeout)).max_size(most).queue_mode(QueueMode::Lifo).build();
        let pool = pool.expect("only time-outs need a runtime, and there are none");
        Connections { pool, timeout, answers: AtomicU64::new(0) }
    }

    fn dialect(&self) -> &D {
        &self.pool.manager().0
    }

    fn drop_idle(&self) {
        self.pool.retain(|_, _| false);
    }

    /// A connection, for which is waited while the database answers others: that there are more loads than
    /// connections is no fault of its. The loads themselves have a time-out.
    async fn check_out(&self) -> Result<Loan<'_, D>, sqlx::Error> {
        let mut connecting = pin!(self.pool.get());
        let mut before = self.answers.load(Ordering::Relaxed);
        loop {
            let got = tokio::time::timeout(self.timeout, &mut connecting).await;
            let answers = self.answers.load(Ordering::Relaxed);
            match got {
                Ok(Ok(connection)) => return Ok(Loan { from: self, connection: Some(connection), answers }),
                Ok(Err(PoolError::Backend(error))) => return Err(error),
                Err(_) if answers != before => before = answers,
                Ok(Err(_)) | Err(_) => return Err(sqlx::Error::PoolTimedOut),
            }
        }
    }

    /// An answer, unless the database stays silent.
    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, sqlx::Error>>) -> Answer<T> {
        let limit = self.timeout + (self.timeout / 2).clamp(GRACE.0, GRACE.1);
        let why =
            || IoError::new(ErrorKind::TimedOut, format!("the database did not answer within {limit:?}"));
        tokio::time::timeout(limit, answer).await.map_err(|_| why().into())
    }

    /// Gives a connection back, or drops it. `None`: the load should be done again.
    fn check_in<T>(
        &self,
        mut loan: Loan<'_, D>,
        answer: Answer<T>,
        is_second: bool,
    ) -> Option<Result<T, sqlx::Error>> {
        let is_broken = match &answer {
            Ok(Err(error)) => self.is_of_connection(error),
            Ok(Ok(_)) => false,
            Err(_) => true,
        };
        if is_broken {
            let may_repeat = answer.is_ok() && loan.has_served() && !is_second;
            drop(loan);
            self.drop_idle();
            return (!may_repeat).then(|| answer.and_then(|answer| answer));
        }
        // Not dropped with its loan, but given back.
        drop(loan.connection.take());
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.pool.retain(|_, metrics| metrics.last_used() <= MOST_IDLE);
        Some(answer.and_then(|answer| answer))
    }

    fn is_of_connection(&self, error: &sqlx::Error) -> bool {
        match error {
            sqlx::Error::Database(error) => self.dialect().ends_connection(&**error),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
            _ => false,
        }
    }
}

#[async_trait]
impl<D: Dialect> Database for Connections<D> {
    async fn one(&self, query: &str, key: &[u8]) -> Result<Option<Bytes>, sqlx::Error> {
        let mut is_second = false;
        loop {
            let mut loan = self.check_out().await?;
            let answer = self.in_time(self.dialect().one(loan.connection()?, query, key)).await;
            if let Some(answer) = self.check_in(loan, answer, is_second) {
                return answer;
            }
            is_second = true;
        }
    }

    async fn many(&self, query: &str, keys: &[Bytes], texts: &[&str]) -> Result<Rows, sqlx::Error> {
        let mut is_second = false;
        loop {
            let mut loan = self.check_out().await?;
            let answer = self.in_time(self.dialect().many(loan.connection()?, query, keys, texts)).await;
            if let Some(answer) = self.check_in(loan, answer, is_second) {
                return answer;
            }
            is_second = true;
        }
    }

    fn name(&self) -> String {
        self.dialect().name()
    }
}

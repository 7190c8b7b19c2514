//! Real origins: PostgreSQL, MariaDB and Redis from the distribution's packages, each started for one test
//! with data of its own; and PgBouncer in front of a PostgreSQL.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User, chown};
use tempfile::TempDir;

use crate::{Process, eventually, free_port};

/// One that a test has started; it ends with its handle.
#[derive(Debug)]
pub struct Database {
    url: String,
    directory: TempDir,
    command: fn(&Path, u16) -> Command,
    port: u16,
    process: Option<Process>,
}

impl Database {
    /// Starts a PostgreSQL and runs `setup` in it.
    ///
    /// # Panics
    /// Where it is not installed, or does not come up.
    pub async fn postgres(setup: &[&str]) -> Self {
        let directory = directory_of("postgres");
        let mut initdb = as_user("postgres", &debian("initdb", "/usr/lib/postgresql"));
        initdb.args(["--username=peanut", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]);
        quiet(initdb.arg("--pgdata").arg(directory.path().join("data")));
        let url = |port| format!("postgres://peanut@127.0.0.1:{port}/postgres");
        let database = Database::start(directory, postgres, url).await;
        database.run::<sqlx::Postgres>(setup).await;
        database
    }

    /// Starts a MariaDB and runs `setup` in its database `peanut`.
    ///
    /// # Panics
    /// Where it is not installed, or does not come up.
    pub async fn mariadb(setup: &[&str]) -> Self {
        let directory = directory_of("mysql");
        let mut install = as_user("mysql", &debian("mariadb-install-db", "/usr/bin"));
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        // A server that starts removes all temporary tables of its directory, those of others that run there
        // too.
        install.env("TMPDIR", directory.path());
        quiet(install.arg(format!("--datadir={}", directory.path().join("data").display())));
        let root = |port| format!("mysql://root@127.0.0.1:{port}/");
        let mut database = Database::start(directory, mariadb, root).await;
        database.run::<sqlx::MySql>(&["CREATE DATABASE peanut"]).await;
        database.url.push_str("peanut");
        database.run::<sqlx::MySql>(setup).await;
        database
    }

    /// Starts a Redis. Its data are set by the test.
    ///
    /// # Panics
    /// Where it is not installed, or does not come up.
    pub async fn redis() -> Self {
        let directory = tempfile::tempdir().expect("a directory for data");
        Database::start(directory, redis, |port| format!("redis://127.0.0.1:{port}/0")).await
    }

    async fn start(directory: TempDir, command: fn(&Path, u16) -> Command, url: fn(u16) -> String) -> Self {
        let port = free_port();
        let mut database = Database { url: url(port), directory, command, port, process: None };
        database.start_again().await;
        database
    }

    /// Starts it again with the same data.
    ///
    /// # Panics
    /// Where it does not come up.
    pub async fn start_again(&mut self) {
        let mut command = (self.command)(self.directory.path(), self.port);
        let mut process = Process::start("database", &mut command);
        let url = self.url.clone();
        eventually("the database to answer", async || {
            // PostgreSQL ends at once where processes of the one before, which was killed, have not all ended
            // yet.
            if process.has_ended() {
                process = Process::start("database", &mut command);
            }
            answers(&url).await.then_some(())
        })
        .await;
        self.process = Some(process);
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Stops its process where it stands, or lets it go on.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Where loaders find it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where loaders find it behind something else on loopback.
    pub fn url_by(&self, port: u16) -> String {
        self.url.replace(&format!(":{}", self.port), &format!(":{port}"))
    }

    /// Runs statements in it.
    ///
    /// # Panics
    /// Where one fails.
    pub async fn run<D: sqlx::Database>(&self, statements: &[&str])
    where
        for<'c> &'c mut D::Connection: sqlx::Executor<'c, Database = D>,
    {
        let mut connection: D::Connection =
            <D::Connection as sqlx::Connection>::connect(&self.url).await.expect("the database answers");
        for statement in statements {
            let sql = sqlx::AssertSqlSafe((*statement).to_owned());
            let done: Result<D::QueryResult, sqlx::Error> =
                sqlx::Executor::execute(&mut connection, sqlx::raw_sql(sql)).await;
            done.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }
}

/// A PgBouncer in front of a PostgreSQL.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    process: Process,
    _directory: TempDir,
}

impl PgBouncer {
    /// Starts one with the package's defaults, but for what is said in `settings`, like `pool_mode =
    /// transaction`.
    ///
    /// # Panics
    /// Where it is not installed, or does not come up.
    pub async fn start(database: &Database, settings: &str) -> Self {
        let directory = directory_of("postgres");
        let (port, path) = (free_port(), |name: &str| directory.path().join(name));
        std::fs::write(path("users"), "\"peanut\" \"\"\n").expect("a directory of its own");
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\n{settings}\n",
            database.port,
            path("users").display(),
        );
        std::fs::write(path("pgbouncer.ini"), config).expect("a directory of its own");
        let mut command = as_user("postgres", &debian("pgbouncer", "/usr/sbin"));
        let mut process = Process::start("pgbouncer", command.arg(path("pgbouncer.ini")));
        process.wait_for_line("process up").await;
        PgBouncer { port, process, _directory: directory }
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it has logged.
    pub fn log(&self) -> Vec<String> {
        self.process.log()
    }
}

async fn answers(url: &str) -> bool {
    use sqlx::Connection as _;
    match url.split(':').next() {
        Some("postgres") => sqlx::PgConnection::connect(url).await.is_ok(),
        Some("mysql") => sqlx::MySqlConnection::connect(url).await.is_ok(),
        _ => {
            let addr = url.trim_start_matches("redis://").trim_end_matches("/0");
            tokio::net::TcpStream::connect(addr).await.is_ok()
        }
    }
}

fn postgres(directory: &Path, port: u16) -> Command {
    let mut command = as_user("postgres", &debian("postgres", "/usr/lib/postgresql"));
    command.arg("-D").arg(directory.join("data")).args(["-p", &port.to_string(), "-h", "127.0.0.1"]);
    command.arg("-k").arg(directory).args(["-F", "-c", "log_statement=all"]);
    command
}

fn mariadb(directory: &Path, port: u16) -> Command {
    let mut command = as_user("mysql", &debian("mariadbd", "/usr/sbin"));
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", directory.join("data").display()))
        .arg(format!("--socket={}", directory.join("socket").display()))
        .arg(format!("--pid-file={}", directory.join("pid").display()))
        .arg(format!("--tmpdir={}", directory.display()))
        .args([&format!("--port={port}"), "--bind-address=127.0.0.1", "--skip-name-resolve"]);
    command
}

fn redis(directory: &Path, port: u16) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.current_dir(directory);
    command
}

/// A directory that this user of the system may write.
fn directory_of(user: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory for data");
    if let Some(user) = instead_of_root(user) {
        chown(directory.path(), Some(user.uid), Some(user.gid)).expect("root may give directories away");
    }
    directory
}

/// Databases do not run as root, as which tests may.
fn instead_of_root(user: &str) -> Option<User> {
    Uid::current().is_root().then(|| {
        let found = User::from_name(user).expect("the list of users can be read");
        found.unwrap_or_else(|| panic!("the package has made no user {user}"))
    })
}

fn as_user(user: &str, program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = instead_of_root(user) {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", "/");
    }
    command.current_dir("/");
    command
}

/// A program that Debian may keep outside the path.
fn debian(program: &str, directory: &str) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&paths).map(|path| path.join(program)).collect();
    places.push(Path::new(directory).join(program));
    if let Ok(versions) = std::fs::read_dir(directory) {
        places.extend(versions.flatten().map(|version| version.path().join("bin").join(program)));
    }
    let found = places.into_iter().find(|place| place.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed; `cargo xtask test` does that"))
}

fn quiet(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

//! What a configuration comes to, and how a wrong one is told.

use super::*;

const FILE: &str = r#"
listen = "127.0.0.1:9999"
fleet = "default"
[etcd]
endpoints = ["http://127.0.0.1:2379"]
[[group]]
name = "scores"
capacity = "64MiB"
ttl = "10m"
[group.loader]
kind = "static"
entries = { Tom = "630", Jack = "589", Sam = "567" }
"#;

pub(super) fn read(text: &str, flags: &[&str]) -> Result<Config, String> {
    let _runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = _runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peanut.toml");
    std::fs::write(&path, text).unwrap();
    let config = format!("--config={}", path.display());
    let args = ["peanut-server", &config].iter().chain(flags).map(|s| (*s).to_owned()).collect::<Vec<_>>();
    Config::read(args).map_err(|stop| match stop {
        Stop::Say(text) => text,
        Stop::Connect(_) => "it would connect".to_owned(),
        Stop::Refuse(error) => error.to_string().replace(&format!("{}/", dir.path().display()), ""),
    })
}

#[test]
fn the_readmes_file_is_read() {
    let config = read(FILE, &[]).unwrap();
    assert_eq!((config.listen, config.server.groups()), (ListenAddr::default(), 1));
}

#[test]
fn a_flag_wins_over_the_file() {
    let config = read(FILE, &["--listen", "127.0.0.1:1", "--log", "debug"]).unwrap();
    assert_eq!((config.listen.0.port(), config.log.as_str()), (1, "debug"));
    let group = r#"{ name = "a", loader = { kind = "static", entries = {} } }"#;
    assert_eq!(
        read(FILE, &["--group", &format!("[{group}, {}]", group.replace("\"a\"", "\"b\""))])
            .unwrap()
            .server
            .groups(),
        2
    );
    assert_eq!(read("", &["--group", group]).unwrap().server.groups(), 1);
}

/// Every bad configuration is one line: the place, what is wrong, and how to mend it.
#[test]
fn what_is_wrong_is_told_with_its_place() {
    let edit = |from: &str, to: &str| FILE.replace(from, to);
    let twice =
        format!("{FILE}[[group]]\nname = \"scores\"\nloader = {{ kind = \"static\", entries = {{}} }}\n");
    let loader = |text: &str| {
        FILE.replace("kind = \"static\"\nentries = { Tom = \"630\", Jack = \"589\", Sam = \"567\" }", text)
    };
    for (text, place, names) in [
        (edit("fleet =", "flete ="), "peanut.toml:3: ", "unknown field `flete`, expected one of"),
        (edit("capacity", "capacty"), "peanut.toml:8: ", "unknown field `capacty`, expected one of"),
        (edit("kind", "knid"), "peanut.toml:11: ", "unknown field `knid`"),
        (edit("64MiB", "0"), "peanut.toml:8: ", "capacity is zero; give it some bytes"),
        (edit("\"64MiB\"", "0"), "peanut.toml:8: ", "capacity is zero; give it some bytes"),
        (edit("64MiB", "lots"), "peanut.toml:8: ", "`lots` is not a size"),
        (edit("10m", "soon"), "peanut.toml:9: ", "`soon` is not a duration"),
        (edit("10m", "0s"), "peanut.toml:7: ", "must be longer than zero"),
        (edit("10m", "30days"), "peanut.toml:9: ", "longer than max_ttl"),
        (twice, "peanut.toml:14: ", "is there already, at peanut.toml:7; rename or remove one"),
        (edit("127.0.0.1:9999", "127.0.0.1"), "peanut.toml:2: ", "write it like 127.0.0.1:9999"),
        (edit("127.0.0.1:9999", "0.0.0.0:9999"), "advertise: ", "set `advertise`"),
        (edit("http://127.0.0.1:2379", "nowhere"), "etcd.endpoints: ", "is not like http://127.0.0.1:2379"),
        (edit("fleet =", "nodes = [\"a:1\"]\nfleet ="), "nodes: ", "remove one"),
        (edit("\"scores\"", "\"a/b\""), "peanut.toml:7: ", "contains a slash"),
        (loader("kind = \"http\""), "peanut.toml:10: ", "needs `url`"),
        (loader("kind = \"http\"\nurl = \"http://h/\""), "peanut.toml:10: ", "{key}"),
        (loader("kind = \"sql\"\nurl = \"sqlite:x\""), "peanut.toml:10: ", "needs `query`"),
        (loader("kind = \"magic\""), "peanut.toml:11: ", "unknown variant `magic`, expected one of"),
        ("listen = [".to_owned(), "peanut.toml:1: ", ""),
        (String::new(), "configuration: ", "add a [[group]]"),
    ] {
        let error = read(&text, &[]).unwrap_err();
        assert!(
            error.starts_with(place) && error.contains(names) && !error.contains('\n'),
            "{names}: {error}"
        );
    }
}

#[expect(clippy::too_many_lines, reason = "one scene after the other")]
/// Every time, size, count, address, path and name that does harm later is refused now, from whichever source
/// it comes.
#[test]
fn what_would_do_harm_later_is_refused_by_name() {
    let set = |line: &str| format!("{line}\n{FILE}");
    let ever = "18446744073709551615s";
    for setting in [
        "keepalive",
        "shutdown_deadline",
        "seal_interval",
        "handshake_timeout",
        "lease_ttl",
        "forget_after",
        "first_call_timeout",
        "idle_timeout",
    ] {
        let error = read(&set(&format!("{setting} = \"{ever}\"")), &[]).unwrap_err();
        assert!(error.starts_with(&format!("{setting}: must be from ")), "{error}");
        if setting != "shutdown_deadline" {
            let flag = format!("--{}=1ns", setting.replace('_', "-"));
            let error = read(FILE, &[&flag]).unwrap_err();
            assert!(error.starts_with(&format!("{setting}: must be from ")), "{error}");
        }
    }
    for (line, place) in [
        ("threads = 0", "peanut.toml:1: "),
        ("threads = 4000000000", "threads: "),
        ("weight = 0", "weight: "),
        ("weight = -1", "peanut.toml:1: "),
        ("max_connections = 0", "max_connections: "),
        ("max_connections_per_peer = 0", "max_connections_per_peer: "),
        ("restore_rate = \"1B\"", "restore_rate: "),
        ("restore_rate = \"16EiB\"", "restore_rate: "),
        ("advertise = \"fd00::1:9999\"", "advertise: "),
        ("advertise = \"0.0.0.0\"", "advertise: "),
        ("advertise = \"0.0.0.0:1\"", "advertise: "),
        ("advertise = \"[::]\"", "advertise: "),
        ("advertise = \"[::]:1\"", "advertise: "),
        ("advertise = \"http://h:1\"", "advertise: "),
        ("zone = \"a/b\"", "zone: "),
        ("node_id = \"\"", "node_id: "),
        ("data_dir = \"/dev/null\"", "data_dir: /dev/null: it is not a directory"),
        ("data_dir = \"/dev/null/x\"", "data_dir: /dev/null: it is not a directory"),
        ("log = \"inof\"", "log: "),
        ("log = \"a=b=c\"", "log: "),
        ("admin = \"127.0.0.1:9999\"", "admin: "),
        ("admin = \"127.0.0.1\"", "peanut.toml:1: "),
        ("admin = \"127.0.0.1:9998\"\nadmin_hosts = [\"http://x\"]", "admin_hosts: "),
    ] {
        let error = read(&set(line), &[]).err().unwrap_or_else(|| panic!("`{line}` is let through"));
        assert!(error.starts_with(place) && !error.contains('\n'), "{line}: {error}");
    }
    let edit = |from: &str, to: &str| FILE.replace(from, to);
    for (text, place, why) in [
        (edit("64MiB", "15EiB"), "capacity: ", "of memory"),
        (edit("64MiB", "99999EiB"), "capacity: ", "of memory"),
        (edit("10m", ever), "peanut.toml:9: ", "longer than max_ttl"),
        (edit("ttl = \"10m\"", &format!("max_ttl = \"{ever}\"")), "peanut.toml:7: ", "max_ttl must be from"),
        (edit("ttl = \"10m\"", "negative_ttl = \"11000d\""), "peanut.toml:7: ", "negative_ttl must be from"),
        (edit("ttl = \"10m\"", "load_timeout = \"1ns\""), "peanut.toml:7: ", "load_timeout must be from"),
        (edit("ttl = \"10m\"", "max_loads = 0"), "peanut.toml:7: ", "max_loads must be"),
        (edit("ttl = \"10m\"", "ttl_jitter = nan"), "peanut.toml:9: ", "ttl_jitter must be"),
        (edit("ttl = \"10m\"", "disk_capacity = 1"), "peanut.toml:7: ", "disk_capacity must be"),
    ] {
        let error = read(&text, &[]).err().unwrap_or_else(|| panic!("let through: {text}"));
        assert!(error.starts_with(place) && error.contains(why) && !error.contains('\n'), "{why}: {error}");
    }
}

#[cfg(feature = "etcd")]
#[test]
fn etcd_is_asked_in_time_and_told_no_password_for_everybody_to_read() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "secret-password\n").unwrap();
    let login = |endpoint: &str, more: &str| {
        let login = format!("user = \"me\"\npassword_file = \"{}\"", password.path().display());
        let etcd = format!("endpoints = [\"http://127.0.0.1:1\", \"{endpoint}\"]\n{login}\n");
        format!("{more}\n{}", FILE.replace("endpoints = [\"http://127.0.0.1:2379\"]\n", &etcd))
    };
    for open in [
        "http://10.0.0.1:2379",
        "http://etcd.example:2379",
        "etcd:2379",
        "http://[fd00::1]:2379",
        "http://localhost.example:1",
    ] {
        let error = read(&login(open, ""), &[]).unwrap_err();
        assert!(
            error.starts_with("etcd.password_file: ") && error.contains("for everybody to read"),
            "{open}: {error}"
        );
        assert!(!error.contains("secret-password"));
        assert!(read(&login(open, "insecure = true"), &[]).is_ok());
    }
    for own in ["http://127.0.0.1:2379", "http://localhost:2379", "http://[::1]:2379"] {
        assert!(read(&login(own, ""), &[]).is_ok(), "{own}");
    }
    for timeout in ["1ns", "0s", "18446744073709551615s"] {
        let error = read(FILE, &[&format!("--etcd-timeout={timeout}")]).unwrap_err();
        assert!(error.starts_with("etcd.timeout: must be from "), "{error}");
    }
}

#[cfg(feature = "http")]
#[test]
fn loaders_are_bounded_where_they_stand_in_the_file() {
    let loader = |more: &str| {
        let kind = format!("kind = \"http\"\nurl = \"http://h/{{key}}\"\n{more}");
        FILE.replace("kind = \"static\"\nentries = { Tom = \"630\", Jack = \"589\", Sam = \"567\" }", &kind)
    };
    for timeout in ["0s", "1ns", "2h", "18446744073709551615s"] {
        let error = read(&loader(&format!("timeout = \"{timeout}\"")), &[]).unwrap_err();
        assert!(error.starts_with("peanut.toml:10: `timeout` must be from "), "{error}");
    }
    assert!(read(&loader("timeout = \"1h\""), &[]).is_ok());
}

#[test]
fn tokens_are_told_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "a-good-secret-of-16\n").unwrap();
    let token = |lines: &str| format!("{FILE}[[token]]\nname = \"app\"\n{lines}\n");
    let good = format!("secret_files = [\"{}\"]", secret.display());
    let rights = "read = [\"scores:user/*\"]\nset = [\"scores\"]\ndelete = [\"scores:Tom\"]\nclear = [\"*\"]";
    assert!(read(&token(&format!("{good}\n{rights}")), &[]).is_ok());
    for (lines, place, why) in [
        (String::new(), "peanut.toml:14: ", "no secret"),
        (format!("{good}\nread = [\"scores:\"]"), "peanut.toml:14: ", "names no key"),
        (format!("{good}\nclear = [\"scores:a*\"]"), "peanut.toml:14: ", "whole group"),
        (format!("{good}\nwirte = []"), "peanut.toml:16: ", "unknown field `wirte`"),
        ("secret_files = [\"/no/such/file\"]".to_owned(), "/no/such/file: ", "No such file"),
        ("certificates = [\"app.example\"]".to_owned(), "token: ", "tls.ca"),
    ] {
        let error = read(&token(&lines), &[]).unwrap_err();
        assert!(error.starts_with(place) && error.contains(why) && !error.contains('\n'), "{why}: {error}");
    }
}

#[test]
fn flags_that_are_wrong_are_told_by_name() {
    let error = read(FILE, &["--listen", "nonsense"]).unwrap_err();
    assert!(error.starts_with("--listen: ") && error.contains("like 127.0.0.1:9999"), "{error}");
    let error = read(FILE, &["--lisen", "nonsense"]).unwrap_err();
    assert!(error.starts_with("--lisen: ") && error.contains("unexpected argument"), "{error}");
    let error = read(FILE, &["--group", "{ name = 1 }"]).unwrap_err();
    assert!(error.starts_with("--group: ") && !error.contains('\n'), "{error}");
    assert!(read(FILE, &["--help"]).unwrap_err().contains("PEANUT_LISTEN"));
}

/// A setting that has a flag has a variable of the same name. That it is in the file too, and merged, is
/// the work of the macro that makes the struct.
#[test]
fn every_setting_is_flag_and_variable() {
    let command = <Flags as clap::CommandFactory>::command();
    let to_do = ["help", "version", "check_config", "connect", "print_config", "generate"];
    for arg in command.get_arguments().filter(|arg| !to_do.contains(&arg.get_id().as_str())) {
        let flag = arg.get_long().expect("every setting is a flag");
        let variable = format!("PEANUT_{}", flag.replace('-', "_").to_uppercase());
        assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
    }
}

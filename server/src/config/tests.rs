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

fn read(text: &str, flags: &[&str]) -> Result<Config, String> {
    let _runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = _runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peanut.toml");
    std::fs::write(&path, text).unwrap();
    let config = format!("--config={}", path.display());
    let args = ["peanut-server", &config].iter().chain(flags).map(|s| (*s).to_owned()).collect::<Vec<_>>();
    Config::read(args).map_err(|stop| match stop {
        Stop::Say(text) => text,
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
    let to_do = ["help", "version", "check_config", "print_config"];
    for arg in command.get_arguments().filter(|arg| !to_do.contains(&arg.get_id().as_str())) {
        let flag = arg.get_long().expect("every setting is a flag");
        let variable = format!("PEANUT_{}", flag.replace('-', "_").to_uppercase());
        assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
    }
}

//! The manifests for Kubernetes: every field is one that its API has, and they fit one another and the
//! programs that they run.
//!
//! The files are checked as they stand, and as `kubectl kustomize` renders them where that is installed.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use peanut_proto::certificate::Certificate;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const SERVER: &str = env!("CARGO_BIN_EXE_peanut-server-under-test");
const PEANUT: &str = env!("CARGO_BIN_EXE_peanut-under-test");

fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes").join(path)
}

/// The objects of a text.
fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// All objects of the base, as its files have them.
fn base() -> Vec<Value> {
    let files = ["nodes.yaml", "proxies.yaml", "network.yaml"].iter();
    files.flat_map(|file| objects(&std::fs::read_to_string(deployed("base").join(file)).unwrap())).collect()
}

/// What `kubectl` makes of the base with all components; nothing where it is not installed.
fn rendered() -> Option<Vec<Value>> {
    render("resources: [../base]\ncomponents: [../components/drain, ../components/monitoring]\n")
}

/// What `kubectl` makes of an overlay beside the base.
fn render(overlay: &str) -> Option<Vec<Value>> {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("kubernetes");
    let copied = Command::new("cp").args(["--recursive"]).arg(deployed("")).arg(&tree).status().unwrap();
    assert!(copied.success());
    std::fs::create_dir(tree.join("overlay")).unwrap();
    std::fs::write(tree.join("overlay/kustomization.yaml"), overlay).unwrap();
    std::fs::write(tree.join("overlay/peanut.toml"), "# of an overlay\n").unwrap();
    let output = Command::new("kubectl").arg("kustomize").arg(tree.join("overlay")).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(objects(&String::from_utf8(output.stdout).unwrap()))
}

/// The fields of `object` that are lost when it is read as a `T`: those that the API has not.
fn lost<T: Serialize + DeserializeOwned>(object: &Value) -> Vec<String> {
    let read: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    let (mut lost, mut path) = (Vec::new(), String::new());
    compare(object, &serde_json::to_value(read).unwrap(), &mut path, &mut lost);
    lost
}

fn compare(object: &Value, read: &Value, path: &mut String, lost: &mut Vec<String>) {
    let children: Vec<(String, &Value, &Value)> = match object {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (format!(".{name}"), value, &read[name])).collect()
        }
        Value::Array(values) => values
            .iter()
            .enumerate()
            .map(|(index, value)| (format!("[{index}]"), value, &read[index]))
            .collect(),
        leaf if leaf == read => return,
        _ => return lost.push(path.clone()),
    };
    for (name, child, read) in children {
        let length = path.len();
        path.push_str(&name);
        compare(child, read, path, lost);
        path.truncate(length);
    }
}

/// Checks each object by its kind, and tells the kinds.
fn check(objects: &[Value]) -> BTreeSet<String> {
    let kinds = objects.iter().map(|object| {
        let kind = object["kind"].as_str().unwrap();
        let lost = match kind {
            "StatefulSet" => lost::<StatefulSet>(object),
            "Deployment" => lost::<Deployment>(object),
            "Service" => lost::<Service>(object),
            "ConfigMap" => lost::<ConfigMap>(object),
            "NetworkPolicy" => lost::<NetworkPolicy>(object),
            "PodDisruptionBudget" => lost::<PodDisruptionBudget>(object),
            // Of the Prometheus operator, whose types are not in Kubernetes' API.
            "ServiceMonitor" => Vec::new(),
            _ => panic!("nobody checks a {kind}"),
        };
        assert!(
            lost.is_empty(),
            "{kind} {} has fields that do not exist: {lost:?}",
            object["metadata"]["name"]
        );
        kind.to_owned()
    });
    kinds.collect()
}

/// Everything within an object that `path` leads to; `*` is every item of a list.
fn all<'v>(value: &'v Value, path: &[&str]) -> Vec<&'v Value> {
    let Some((first, rest)) = path.split_first() else { return vec![value] };
    match (*first, value) {
        ("*", Value::Array(values)) => values.iter().flat_map(|value| all(value, rest)).collect(),
        (name, Value::Object(fields)) => fields.get(name).map_or_else(Vec::new, |value| all(value, rest)),
        _ => Vec::new(),
    }
}

fn names(value: &Value, path: &[&str]) -> BTreeSet<String> {
    all(value, path).into_iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn of_kind<'v>(objects: &'v [Value], kinds: &[&str]) -> Vec<&'v Value> {
    objects.iter().filter(|object| kinds.contains(&object["kind"].as_str().unwrap())).collect()
}

const CONTAINERS: [&str; 5] = ["spec", "template", "spec", "containers", "*"];

fn in_containers(path: &[&'static str]) -> Vec<&'static str> {
    [&CONTAINERS, path].concat()
}

/// As it stands on the page for operators.
#[test]
fn the_overlay_of_the_page_names_its_own_image_etcd_and_configuration() {
    let page = std::fs::read_to_string(deployed("../../docs/operations.md")).unwrap();
    let overlay = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let Some(rendered) = render(&overlay.replace("peanut/deploy/kubernetes", "..")) else {
        println!("the overlay was not rendered: kubectl is not installed");
        return;
    };
    check(&rendered);
    let text = serde_json::to_string(&rendered).unwrap();
    assert_eq!(text.matches("http://etcd.example:2379").count(), 2);
    assert!(!text.contains("http://etcd:2379") && !text.contains("ghcr.io/peanut"));
    assert_eq!(text.matches("registry.example/peanut:0.1.0").count(), 2);
    assert!(text.contains("# of an overlay"));
}

#[test]
fn every_field_is_one_that_kubernetes_has() {
    let expected = ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet"];
    assert_eq!(check(&base()), expected.map(str::to_owned).into());
    let mut misspelt = of_kind(&base(), &["StatefulSet"])[0].clone();
    misspelt["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = "x".into();
    assert_eq!(lost::<StatefulSet>(&misspelt), [".spec.template.spec.containers[0].livenessProb"]);
    match rendered() {
        Some(rendered) => {
            let kinds = check(&rendered);
            assert!(kinds.contains("ServiceMonitor") && kinds.contains("ConfigMap"), "{kinds:?}");
            let nodes = of_kind(&rendered, &["StatefulSet"])[0];
            let stop = in_containers(&["lifecycle", "preStop", "exec", "command", "*"]);
            // Hooks have no variables expanded; the node is in the environment. A variable with etcd's
            // endpoints would come before those of the node's configuration.
            assert_eq!(all(nodes, &stop), ["peanut", "--etcd=http://etcd:2379", "drain", "--wait=60"]);
            let variables = names(nodes, &in_containers(&["env", "*", "name"]));
            assert!(variables.contains("PEANUT_NODE_ID") && !variables.contains("PEANUT_ETCD_ENDPOINTS"));
        }
        None => println!("rendering was not tried: kubectl is not installed"),
    }
}

#[test]
fn ports_volumes_and_labels_fit() {
    let base = base();
    let mut ports = BTreeSet::new();
    for workload in of_kind(&base, &["StatefulSet", "Deployment"]) {
        let own = names(workload, &in_containers(&["ports", "*", "name"]));
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            for way in ["httpGet", "tcpSocket"] {
                let probed = names(workload, &in_containers(&[probe, way, "port"]));
                assert!(probed.is_subset(&own), "{probe} asks {probed:?}");
            }
        }
        ports.extend(own);
        let mut volumes = names(workload, &["spec", "template", "spec", "volumes", "*", "name"]);
        volumes.extend(names(workload, &["spec", "volumeClaimTemplates", "*", "metadata", "name"]));
        assert_eq!(names(workload, &in_containers(&["volumeMounts", "*", "name"])), volumes);
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        assert_eq!(&workload["spec"]["selector"]["matchLabels"], labels);
        // Whoever may not write to its root, and is nobody.
        assert_eq!(all(workload, &in_containers(&["securityContext", "readOnlyRootFilesystem"])), [true]);
        assert_eq!(workload["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"], true);
    }
    let labels: Vec<&Value> = of_kind(&base, &["StatefulSet", "Deployment"])
        .into_iter()
        .map(|workload| &workload["spec"]["template"]["metadata"]["labels"])
        .collect();
    for service in of_kind(&base, &["Service"]) {
        assert!(labels.contains(&&service["spec"]["selector"]), "{service:#}");
        assert!(names(service, &["spec", "ports", "*", "targetPort"]).is_subset(&ports), "{service:#}");
    }
    for policy in of_kind(&base, &["NetworkPolicy"]) {
        assert!(labels.contains(&&policy["spec"]["podSelector"]["matchLabels"]), "{policy:#}");
        assert!(
            names(policy, &["spec", "ingress", "*", "ports", "*", "port"]).is_subset(&ports),
            "{policy:#}"
        );
    }
    for budget in of_kind(&base, &["PodDisruptionBudget"]) {
        assert!(labels.contains(&&budget["spec"]["selector"]["matchLabels"]), "{budget:#}");
    }
    let monitors = monitors();
    assert_eq!(monitors.len(), 2, "of nodes and of proxies");
    for monitor in &monitors {
        assert!(names(monitor, &["spec", "endpoints", "*", "port"]).is_subset(&ports));
        assert!(labels.contains(&&monitor["spec"]["selector"]["matchLabels"]));
    }
}

/// What has the Prometheus operator scrape nodes and proxies.
fn monitors() -> Vec<Value> {
    objects(&std::fs::read_to_string(deployed("components/monitoring/service-monitor.yaml")).unwrap())
}

/// What the comment of the base asks for: secrets, and a certificate with these names.
fn asked_for() -> (BTreeSet<String>, Certificate) {
    let base = std::fs::read_to_string(deployed("base/kustomization.yaml")).unwrap();
    let comment = || base.lines().filter_map(|line| line.strip_prefix('#').map(str::trim));
    let secret = |line: &str| Some(line.strip_prefix("- `")?.split('`').next()?.to_owned());
    let names = comment().find(|line| line.ends_with(", 127.0.0.1")).unwrap_or_default();
    let names = names.split(", ").map(str::to_owned).collect();
    let certificate = Certificate { names, not_before_ms: 0, not_after_ms: 1, is_authority: false };
    (comment().filter_map(secret).collect(), certificate)
}

#[test]
fn the_secrets_and_the_names_of_the_certificate_are_asked_for() {
    let (base, (secrets, certificate)) = (base(), asked_for());
    let mounted: BTreeSet<String> = of_kind(&base, &["StatefulSet", "Deployment"])
        .into_iter()
        .flat_map(|it| names(it, &["spec", "template", "spec", "volumes", "*", "secret", "secretName"]))
        .collect();
    assert_eq!(secrets, mounted);
    let nodes = of_kind(&base, &["StatefulSet"])[0];
    let variables = all(nodes, &in_containers(&["env", "*"]));
    let advertised = variables.into_iter().find(|it| it["name"] == "PEANUT_ADVERTISE").unwrap();
    let advertised = advertised["value"].as_str().unwrap().rsplit_once(':').unwrap().0;
    for pod in 0..nodes["spec"]["replicas"].as_u64().unwrap() {
        let host = advertised.replace("$(POD_NAME)", &format!("peanut-{pod}"));
        assert!(certificate.names_host(&host), "{host} is none of {:?}", certificate.names);
    }
    for service in of_kind(&base, &["Service"]) {
        let host = service["metadata"]["name"].as_str().unwrap();
        assert!(certificate.names_host(host), "{host} is none of {:?}", certificate.names);
    }
    for monitor in monitors() {
        for host in names(&monitor, &["spec", "endpoints", "*", "tlsConfig", "serverName"]) {
            assert!(certificate.names_host(&host), "{host} is none of {:?}", certificate.names);
        }
        let asked = names(&monitor, &["spec", "endpoints", "*", "authorization", "credentials", "name"]);
        assert!(asked.is_subset(&secrets), "{asked:?}");
    }
}

fn help(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that a program's help has the flags among its arguments.
fn knows_flags(help: &str, args: &[&Value]) {
    let flags = args.iter().filter_map(|arg| arg.as_str()?.split('=').next());
    for flag in flags.filter(|arg| arg.starts_with("--")) {
        assert!(help.lines().flat_map(str::split_whitespace).any(|word| word == flag), "there is no {flag}");
    }
}

#[test]
fn the_programs_know_what_they_are_told() {
    for workload in of_kind(&base(), &["StatefulSet", "Deployment"]) {
        let known = match workload["kind"].as_str() {
            Some("StatefulSet") => help(SERVER, &[]),
            _ => help(PEANUT, &["proxy"]),
        };
        knows_flags(&known, &all(workload, &in_containers(&["args", "*"])));
        let variables = names(workload, &in_containers(&["env", "*", "name"]));
        for variable in variables.iter().filter(|name| name.starts_with("PEANUT_")) {
            assert!(known.contains(&format!("[env: {variable}=")), "there is no {variable}");
        }
    }
}

/// The configuration of the nodes, with files where it looks for them, is one that a node takes.
#[test]
fn a_node_takes_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, tokens) = (directory.path().join("tls"), directory.path().join("tokens"));
    std::fs::create_dir_all(&tokens).unwrap();
    let certify = ["certify", "peanut", "peanut-0.peanut", "--dir", tls.to_str().unwrap()];
    assert!(Command::new(PEANUT).args(certify).status().unwrap().success());
    for (from, to) in [("ca.pem", "ca.crt"), ("peanut.pem", "tls.crt"), ("peanut.key", "tls.key")] {
        std::fs::rename(tls.join(from), tls.join(to)).unwrap();
    }
    for token in ["proxies", "operators"] {
        std::fs::write(tokens.join(token), format!("a-secret-of-{token}-that-is-long-enough")).unwrap();
    }
    let config = std::fs::read_to_string(deployed("base/peanut.toml")).unwrap();
    let config = config.replace("/etc/peanut", directory.path().to_str().unwrap());
    let config = config.replace("/var/lib/peanut", directory.path().join("data").to_str().unwrap());
    let file = directory.path().join("peanut.toml");
    std::fs::write(&file, config).unwrap();
    let nodes = &of_kind(&base(), &["StatefulSet"])[0].clone();
    let mut server = Command::new(SERVER);
    server.arg("--config").arg(&file).arg("--check-config");
    for variable in all(nodes, &in_containers(&["env", "*"])) {
        if let Some(value) = variable["value"].as_str() {
            server.env(variable["name"].as_str().unwrap(), value.replace("$(POD_NAME)", "peanut-0"));
        }
    }
    let output = server.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The fleet of `deploy/compose`: its files are there, and the programs know what they are told.
#[test]
fn the_compose_file_starts_what_there_is() {
    let compose = deployed("../compose");
    let read = |file: &str| std::fs::read_to_string(compose.join(file)).unwrap();
    let file: Value = serde_saphyr::from_str(&read("compose.yaml")).unwrap();
    let services = file["services"].as_object().unwrap();
    for (name, service) in services {
        for volume in all(service, &["volumes", "*"]) {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            let is_there = file["volumes"].get(from).is_some() || compose.join(from).exists();
            assert!(is_there, "{name}: there is no {from}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let config = read("peanut.toml").replace("/var/lib/peanut", directory.path().to_str().unwrap());
    std::fs::write(directory.path().join("peanut.toml"), config).unwrap();
    let nodes: Vec<_> = services.iter().filter(|(name, _)| name.starts_with("node-")).collect();
    assert_eq!(nodes.len(), 3);
    for (name, node) in nodes {
        let mut server = Command::new(SERVER);
        server.arg("--config").arg(directory.path().join("peanut.toml")).arg("--check-config");
        let variables = node["environment"].as_object().unwrap();
        server.envs(variables.iter().map(|(name, value)| (name, value.as_str().unwrap())));
        let output = server.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    knows_flags(&help(PEANUT, &["proxy"]), &all(&services["proxy"], &["command", "*"]));
    for (from, to) in [("prometheus.yml", "prometheus.yml"), ("../prometheus/alerts.yaml", "alerts.yaml")] {
        std::fs::write(directory.path().join(to), read(from)).unwrap();
    }
    let check = ["check", "config", "prometheus.yml"];
    let checked = Command::new("promtool").args(check).current_dir(directory.path()).output();
    let checked = checked.expect("promtool is installed by `cargo xtask test`");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

//! What can be told of endpoints and logins without an etcd.

use super::*;

#[test]
fn endpoints_and_times_are_such_that_etcd_can_be_asked() {
    let made = |endpoint: &str, timeout| EtcdRegistry::new([endpoint], timeout).map_err(|it| it.to_string());
    let second = Duration::from_secs(1);
    for good in ["127.0.0.1:2379", "http://etcd-1:2379/", "https://[fd00::1]:2379", "http://etcd.example.:1"]
    {
        assert!(made(good, second).is_ok(), "{good}");
    }
    for bad in [
        "",
        "etcd",
        "http://etcd",
        "http://etcd:0",
        "ftp://etcd:1",
        "http://fd00::1:2379",
        "http://[::]:2379",
        "http://a b:1",
        "http://etcd:2379/path",
    ] {
        assert!(made(bad, second).unwrap_err().contains("is not like"), "{bad}");
    }
    let with_user = made("http://me:secret@etcd:1", second).unwrap_err();
    assert!(
        with_user.contains("`etcd:1` has a user before it") && !with_user.contains("secret"),
        "{with_user}"
    );
    for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(u64::MAX), Duration::MAX] {
        assert!(made("etcd:2379", timeout).unwrap_err().contains("must be from 10ms to 2s"), "{timeout:?}");
    }
}

fn registry(endpoint: &str) -> EtcdRegistry {
    EtcdRegistry::new([endpoint], Duration::from_millis(100)).unwrap()
}

#[tokio::test]
async fn a_password_is_not_sent_for_everybody_to_read() {
    // Addresses that nobody has (RFC 5737).
    let open = registry("http://192.0.2.1:2379").user("me", "password");
    assert_eq!(open.open_endpoint(), Some("http://192.0.2.1:2379"));
    let why = open.delete("k").await.unwrap_err().to_string();
    assert!(why.contains("for everybody to read") && !why.contains("password:"), "{why}");
    for other in [
        open.clone().insecure(),
        registry("http://192.0.2.1:2379"),
        registry("http://127.0.0.1:1").user("me", "password"),
    ] {
        let why = other.delete("k").await.unwrap_err().to_string();
        assert!(!why.contains("for everybody to read"), "{why}");
    }
    for own in ["http://localhost:1", "http://[::1]:1", "https://192.0.2.1:1"] {
        assert_eq!(registry(own).open_endpoint(), None, "{own}");
    }
}

#[tokio::test]
async fn an_endpoint_over_tls_needs_authorities_that_its_certificate_comes_from() {
    let why = registry("https://127.0.0.1:1").delete("k").await.unwrap_err().to_string();
    assert!(why.contains("no authority is named") && why.contains("--etcd-ca"), "{why}");
}

#[test]
fn what_every_member_would_refuse_is_no_reason_to_leave_one() {
    let refused =
        |code, why: &str| is_a_refusal(&etcd_client::Error::GRpcStatus(tonic::Status::new(code, why)));
    use tonic::Code;
    for (code, why) in [
        (Code::PermissionDenied, "etcdserver: permission denied"),
        (Code::NotFound, "etcdserver: requested lease not found"),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
    ] {
        assert!(refused(code, why), "{why}");
    }
    for (code, why) in [
        (Code::Unavailable, "etcdserver: no leader"),
        (Code::Unavailable, "etcdserver: request timed out"),
        (Code::ResourceExhausted, "etcdserver: too many requests"),
        (Code::Unauthenticated, "etcdserver: invalid auth token"),
        (Code::Unknown, "transport error"),
    ] {
        assert!(!refused(code, why), "{why}");
    }
}

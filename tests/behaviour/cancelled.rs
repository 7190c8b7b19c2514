//! Callers that stop waiting for a write: their database may have been written by then, so the key is
//! deleted.

use std::time::Duration;

use futures_util::poll;
use peanut_client::Client;
use peanut_server::Group;
use peanut_server::testing::TestFleet;
use peanut_tests::eventually;
use tokio::time::{sleep, timeout};

async fn fleet() -> (TestFleet, Client) {
    let fleet = TestFleet::start(2, [Group::without_loader("g")]).await.unwrap();
    let client = Client::builder().registry(fleet.registry()).build().await.unwrap();
    (fleet, client)
}

#[tokio::test]
async fn a_write_that_was_begun_and_dropped_leaves_nothing_that_came_meanwhile() {
    let (_fleet, client) = fleet().await;
    let group = client.group("g").with_deadline(Duration::from_millis(500));
    let begun = group.begin_write("k").await.unwrap();
    // What a reader has loaded from the database, before that was written.
    let old = || async { Ok::<_, std::io::Error>(Some("old")) };
    assert_eq!(group.get_or_load("k", old).await.unwrap().unwrap(), "old");
    drop(begun);
    eventually("the old value to go", async || group.get("k").await.unwrap().is_none().then_some(())).await;
    // A statement that was under way may be seen by readers a little later.
    assert_eq!(group.get_or_load("k", old).await.unwrap().unwrap(), "old");
    eventually("it to go again", async || group.get("k").await.unwrap().is_none().then_some(())).await;
    // And never again: nobody writes.
    assert_eq!(group.get_or_load("k", old).await.unwrap().unwrap(), "old");
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(group.get("k").await.unwrap().unwrap(), "old");
}

#[tokio::test]
async fn a_write_that_has_ended_deletes_nothing_when_it_is_dropped() {
    let (_fleet, client) = fleet().await;
    let group = client.group("g").with_deadline(Duration::from_millis(200));
    group.begin_write("k").await.unwrap().set("new").await.unwrap();
    sleep(Duration::from_millis(600)).await;
    assert_eq!(group.get("k").await.unwrap().unwrap(), "new");
}

#[tokio::test]
async fn every_write_whose_future_is_dropped_is_done_as_a_delete() {
    let (fleet, client) = fleet().await;
    let group = client.group("g");
    for kind in ["set", "set_many", "delete", "delete_many", "end of a write"] {
        group.set("k", "old").await.unwrap();
        // It knows no node yet, and has sent nothing when it is dropped.
        let fresh = Client::builder().registry(fleet.registry()).build_lazy().unwrap();
        let fresh = fresh.group("g");
        let write = async {
            match kind {
                "set" => drop(fresh.set("k", "new").await),
                "set_many" => drop(fresh.set_many([("k", "new")]).await),
                "delete" => drop(fresh.delete("k").await),
                "delete_many" => drop(fresh.delete_many(["k"]).await),
                _ => {
                    let begun = group.begin_write("k").await.unwrap();
                    group.set("k", "old").await.unwrap();
                    // Dropped at its first turn.
                    let _ = timeout(Duration::ZERO, begun.set("new")).await;
                }
            }
        };
        if kind == "end of a write" {
            write.await;
        } else {
            let mut write = Box::pin(write);
            assert!(poll!(&mut write).is_pending());
        }
        eventually(kind, async || {
            let value = group.get("k").await.unwrap();
            value.is_none_or(|value| value == "new").then_some(())
        })
        .await;
    }
}

/// The application drops the write, and then the runtime on which the delete would be done.
#[test]
fn a_dropped_write_is_deleted_also_when_its_runtime_ends_or_there_is_none() {
    let home = tokio::runtime::Runtime::new().unwrap();
    let (_fleet, client) = home.block_on(fleet());
    let group = client.group("g");
    let gone = |what: &str| {
        home.block_on(eventually(what, async || group.get("k").await.unwrap().is_none().then_some(())));
    };
    for wait in [Duration::ZERO, Duration::from_secs(3600)] {
        home.block_on(group.set("k", "old")).unwrap();
        let short = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun =
            short.block_on(group.with_deadline(wait.max(Duration::from_secs(1))).begin_write("k")).unwrap();
        home.block_on(group.get_or_load("k", || async { Ok::<_, std::io::Error>(Some("old")) })).unwrap();
        // Within the runtime, which runs nothing any more: the delete is its task, and ends with it.
        let within = short.enter();
        drop(begun);
        drop(within);
        drop(short);
        gone("the old value to go after its runtime has");
    }
    home.block_on(group.set("k", "old")).unwrap();
    let begun = home.block_on(group.begin_write("k")).unwrap();
    home.block_on(group.get_or_load("k", || async { Ok::<_, std::io::Error>(Some("old")) })).unwrap();
    std::thread::spawn(move || drop(begun)).join().unwrap();
    gone("the old value to go where there is no runtime");
}

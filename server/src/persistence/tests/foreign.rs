//! Files that are not what a node has written.

use super::*;

#[test]
fn foreign_empty_and_future_files_cost_nothing_but_themselves() {
    let future = {
        let mut bytes = Vec::new();
        header().write(&mut bytes);
        bytes[8] = 3;
        bytes
    };
    for content in [&b""[..], b"not one of ours, though its name is", &future] {
        for name in
            ["00000000000000000001.loads", "00000000000000000001.hottest", "00000000000000000009.loads.open"]
        {
            let directory = ten();
            fs::write(directory.path().join(name), content).unwrap();
            assert_eq!(restored(&directory), Report { restored: 10, files: 1, ..Report::default() });
        }
    }
    let directory = ten();
    fs::write(directory.path().join("notes.txt"), "somebody's").unwrap();
    fs::write(directory.path().join("1.loads"), "somebody's").unwrap();
    fs::create_dir(directory.path().join("00000000000000000005.loads")).unwrap();
    assert_eq!(restored(&directory).restored, 10);
    assert!(directory.path().join("notes.txt").exists(), "what is not ours stays");
}

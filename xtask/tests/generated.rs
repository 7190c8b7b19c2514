//! Compares the committed code with what the `.proto` files generate, and with `PEANUT_REGENERATE=1`
//! writes it. protox compiles, so no protoc is needed; and this crate does not depend on the result.

use std::fs;
use std::path::Path;

use prost::Message as _;
use tonic_prost_build::Config;

const GENERATED: [&str; 4] =
    ["peanut.v1.rs", "peanut.loader.v1.rs", "peanutcachepb.rs", "descriptor_set.bin"];

fn generate(into: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto");
    let files = [
        "peanut/v1/peanut.proto",
        "peanut/v1/admin.proto",
        "peanut/loader/v1/loader.proto",
        "peanutcachepb/peanutcache.proto",
    ];
    let descriptors = protox::compile(files, [root]).expect("the .proto files compile");
    fs::write(into.join("descriptor_set.bin"), descriptors.encode_to_vec()).expect("descriptors are written");
    let mut config = Config::new();
    config.bytes(["."]);
    tonic_prost_build::configure()
        .build_transport(false)
        // Servers and clients answer UNIMPLEMENTED where they do not implement a method.
        .generate_default_stubs(true)
        .codec_path("crate::codec::PeanutCodec")
        // Frames are read and written by hand.
        .extern_path(".peanut.v1.LaneRequest", "crate::frame::RequestFrame")
        .extern_path(".peanut.v1.LaneResponse", "crate::frame::ResponseFrame")
        .out_dir(into)
        .compile_fds_with_config(descriptors, config)
        .expect("code is generated");
}

#[test]
fn committed_code_is_what_the_proto_files_generate() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/src/generated");
    let scratch = tempfile::tempdir().unwrap();
    generate(scratch.path());
    for name in GENERATED {
        let fresh = fs::read(scratch.path().join(name)).unwrap();
        if std::env::var_os("PEANUT_REGENERATE").is_some() {
            fs::write(committed.join(name), fresh).unwrap();
        } else {
            let old = fs::read(committed.join(name)).unwrap_or_default();
            assert!(old == fresh, "{name} is out of date: run `cargo xtask generate`");
        }
    }
}

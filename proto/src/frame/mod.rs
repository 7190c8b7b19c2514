//! Frames: how the messages of a lane are written and read.
//!
//! A frame is the protobuf encoding of `LaneRequest` or `LaneResponse`, nothing else; generated code reads
//! and writes the same bytes. It is done by hand because a lane carries a million operations a second:
//! repeated fields are appended to one buffer as they come, so a frame needs no list of operations to be
//! encoded from, nor one to be decoded into, and values are slices of the frame they came in.
//!
//! This is a pure codec. When a frame is sent, and what is done about its operations, is the lane's
//! business on either side.

mod operation;
mod request;
mod response;
mod wire;

pub use operation::{Operation, Rare, RequestField, RequestFrame, RequestReader};
pub use request::{Filled, GetManyOperation, GetOperation, RequestWriter, Write, WriteOperation};
pub use response::{AnswerFields, OutdatedKeys, ResponseField, ResponseFrame, ResponseWriter, Target};
pub use wire::FrameError;

/// A frame is sent when it has grown to about this many bytes, and a longer value goes in pieces of at
/// most as many: what is behind it in the lane waits for no more than that.
pub const FRAME_BYTES: usize = 64 << 10;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod tests;

//! How messages meet tonic: protobuf by prost for unary calls, and frames, which are bytes already.

use std::marker::PhantomData;

use bytes::{Buf as _, BufMut as _};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::frame::{FRAME_BYTES, RequestFrame, ResponseFrame};

/// A message that can be sent and received.
pub trait Wire: Sized + Send + 'static {
    /// Writes the message.
    fn write(self, to: &mut EncodeBuf<'_>);

    /// Reads a message that takes all of `from`.
    ///
    /// # Errors
    /// Where it is not such a message.
    fn read(from: &mut DecodeBuf<'_>) -> Result<Self, Status>;
}

impl<M: prost::Message + Default + 'static> Wire for M {
    fn write(self, to: &mut EncodeBuf<'_>) {
        self.encode(to).expect("the buffer grows as it must");
    }

    fn read(from: &mut DecodeBuf<'_>) -> Result<Self, Status> {
        M::decode(from).map_err(|e| Status::internal(format!("malformed message: {e}")))
    }
}

macro_rules! frame {
    ($($frame:ident),*) => {$(
        /// The bytes as they are; what they hold is checked field by field when it is looked at.
        impl Wire for $frame {
            fn write(self, to: &mut EncodeBuf<'_>) {
                to.put(self.0);
            }

            fn read(from: &mut DecodeBuf<'_>) -> Result<Self, Status> {
                Ok($frame(from.copy_to_bytes(from.remaining())))
            }
        }
    )*};
}
frame!(RequestFrame, ResponseFrame);

/// The codec of every method: sends `T`, receives `U`.
#[derive(Clone, Copy, Debug)]
pub struct PeanutCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for PeanutCodec<T, U> {
    fn default() -> Self {
        PeanutCodec(PhantomData)
    }
}

impl<T: Wire, U: Wire> Codec for PeanutCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Coder<T>;
    type Decoder = Coder<U>;

    fn encoder(&mut self) -> Coder<T> {
        Coder(PhantomData)
    }

    fn decoder(&mut self) -> Coder<U> {
        Coder(PhantomData)
    }
}

/// One direction of a [`PeanutCodec`].
#[derive(Clone, Copy, Debug)]
pub struct Coder<T>(PhantomData<T>);

impl<T: Wire> Encoder for Coder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.write(to);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // What one frame takes, and then the transport gets it.
        BufferSettings::new(8 << 10, FRAME_BYTES)
    }
}

impl<T: Wire> Decoder for Coder<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        T::read(from).map(Some)
    }
}

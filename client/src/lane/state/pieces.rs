//! A value that comes in pieces.

use bytes::{Bytes, BytesMut};
use peanut_proto::frame::{AnswerFields, FrameError};
use peanut_proto::limits::MAX_VALUE_BYTES;

#[derive(Debug)]
pub(super) struct Pieces {
    first: AnswerFields,
    value: BytesMut,
    whole: usize,
}

impl Pieces {
    /// Takes in an answer, or a piece of one. `Some`: it is whole now.
    pub(super) fn assemble(
        pieces: &mut Option<Box<Pieces>>,
        answer: &AnswerFields,
        value: Bytes,
    ) -> Result<Option<(AnswerFields, Bytes)>, FrameError> {
        match pieces {
            None if answer.value_bytes == 0 => Ok(Some((*answer, value))),
            None => {
                let whole =
                    usize::try_from(answer.value_bytes).ok().filter(|whole| *whole <= MAX_VALUE_BYTES);
                let whole = whole.ok_or(FrameError::TOO_LONG)?;
                let mut bytes = BytesMut::with_capacity(whole);
                bytes.extend_from_slice(&value);
                *pieces = Some(Box::new(Pieces { first: *answer, value: bytes, whole }));
                Ok(None)
            }
            Some(begun) => {
                if begun.value.len() + value.len() > begun.whole {
                    return Err(FrameError::TOO_LONG);
                }
                begun.value.extend_from_slice(&value);
                if begun.value.len() < begun.whole {
                    return Ok(None);
                }
                Ok(Some((begun.first, std::mem::take(&mut begun.value).freeze())))
            }
        }
    }
}

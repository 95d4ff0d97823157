//! Frames for files and wires: postcard, CRC-32C (little-endian), COBS, one zero byte at the end.
//!
//! ```text
//! COBS( postcard(payload) ++ crc32c(postcard(payload)) ) 00
//! ```
//!
//! A zero byte stands nowhere but at the end of a frame, so that a reader which lost its place, or read a damaged
//! frame, finds the next one at the next zero. Empty frames are skipped: a sender may start with a zero byte to end
//! whatever noise the line held.
//!
//! COBS: S. Cheshire and M. Baker, Consistent Overhead Byte Stuffing, IEEE/ACM Transactions on Networking 7(2), 1999.

use cobs::{EncoderState, PushResult};
use crc::{CRC_32_ISCSI, Crc};
use postcard::ser_flavors::Flavor;
use postcard::ser_flavors::crc::CrcModifier;
use serde::{Deserialize, Serialize};

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Bytes of the CRC.
const CRC_BYTES: usize = 4;

/// Why a payload could not be framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The buffer ends before the frame does.
    #[error("a frame does not fit its buffer of {buffer} bytes")]
    Buffer {
        /// Length of the buffer.
        buffer: usize,
    },
    /// The payload's own `Serialize` refused.
    #[error("the payload of a frame cannot be serialized")]
    Payload,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The bytes ended before the frame did.
    #[error("cut off")]
    CutOff,
    /// The stuffing is not COBS.
    #[error("bad COBS code")]
    Cobs,
    /// Too short for a CRC.
    #[error("too short")]
    Short,
    /// The CRC differs.
    #[error("bad CRC")]
    Crc,
}

/// A frame that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged frame at byte {position}, {length} bytes: {damage}")]
pub struct DamagedFrame {
    /// Where it starts, in bytes from the start of the stream.
    pub position: usize,
    /// Its bytes, without the zero at its end.
    pub length: usize,
    /// What is wrong.
    pub damage: Damage,
}

/// The most bytes that a frame takes whose postcard payload has `payload` bytes, its final zero included.
///
/// Exact for payloads of at most 249 bytes; longer ones may need up to one byte in 254 less.
pub const fn max_frame_bytes(payload: usize) -> usize {
    let stuffed = payload + CRC_BYTES;
    stuffed + stuffed / 254 + 2
}

/// Writes one frame, its final zero included, to the start of `buffer`, and returns its length.
pub fn encode<T: Serialize + ?Sized>(payload: &T, buffer: &mut [u8]) -> Result<usize, EncodeError> {
    let full = EncodeError::Buffer { buffer: buffer.len() };
    let stuffing = Stuffing { state: EncoderState::default(), bytes: 1, buffer: Some(buffer) };
    match postcard::serialize_with_flavor(payload, CrcModifier::new(stuffing, CRC.digest())) {
        Ok(bytes) => Ok(bytes),
        Err(postcard::Error::SerializeBufferFull) => Err(full),
        Err(_) => Err(EncodeError::Payload),
    }
}

/// The length that [`encode`] would return, without a buffer.
pub fn encoded_len<T: Serialize + ?Sized>(payload: &T) -> Result<usize, EncodeError> {
    let counter = Stuffing { state: EncoderState::default(), bytes: 1, buffer: None };
    postcard::serialize_with_flavor(payload, CrcModifier::new(counter, CRC.digest())).map_err(|_| EncodeError::Payload)
}

/// Decodes one frame in place, given without its final zero, and returns the payload's bytes.
pub fn decode(frame: &mut [u8]) -> Result<&[u8], Damage> {
    let len = cobs::decode_in_place(frame).map_err(|_| Damage::Cobs)?;
    let decoded = frame.get(..len).ok_or(Damage::Cobs)?;
    let (payload, crc) = decoded.split_last_chunk::<CRC_BYTES>().ok_or(Damage::Short)?;
    if CRC.checksum(payload) != u32::from_le_bytes(*crc) { Err(Damage::Crc) } else { Ok(payload) }
}

/// Parses the payload that [`decode`] returned; `None` if it is not a `T`, or if bytes are left over.
pub fn parse<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Option<T> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// The frames in `bytes`, in order, each decoded in place; damaged ones are reported and passed over.
pub fn frames(bytes: &mut [u8]) -> Frames<'_> {
    Frames { rest: bytes, position: 0 }
}

/// See [`frames`]. Each item is the bytes of a payload, or what is wrong with a frame.
#[derive(Debug)]
pub struct Frames<'a> {
    rest: &'a mut [u8],
    position: usize,
}

impl Frames<'_> {
    /// Where the next frame starts, or the zeros before it, in bytes from the start of the stream.
    pub fn position(&self) -> usize {
        self.position
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], DamagedFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let bytes = core::mem::take(&mut self.rest);
            let position = self.position;
            let end = bytes.iter().position(|&b| b == 0);
            let length = end.unwrap_or(bytes.len());
            let (frame, rest) = bytes.split_at_mut(length);
            // Past the zero, if there is one.
            self.rest = rest.get_mut(1..).unwrap_or_default();
            self.position += length + usize::from(end.is_some());
            let damaged = |damage| DamagedFrame { position, length, damage };
            match end {
                Some(0) => continue,
                Some(_) => return Some(decode(frame).map_err(damaged)),
                None => return Some(Err(damaged(Damage::CutOff))),
            }
        }
        None
    }
}

/// COBS: writes the frame, or only counts its bytes if there is no buffer. As postcard's flavor does, but without a way to panic.
struct Stuffing<'a> {
    state: EncoderState,
    /// Written so far; the first is the code of the first run, which is known only at its end.
    bytes: usize,
    buffer: Option<&'a mut [u8]>,
}

impl Stuffing<'_> {
    fn put(&mut self, at: usize, byte: u8) -> postcard::Result<()> {
        let Some(buffer) = self.buffer.as_deref_mut() else { return Ok(()) };
        *buffer.get_mut(at).ok_or(postcard::Error::SerializeBufferFull)? = byte;
        Ok(())
    }
}

impl Flavor for Stuffing<'_> {
    type Output = usize;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        match self.state.push(byte) {
            PushResult::AddSingle(byte) => self.put(self.bytes, byte)?,
            PushResult::ModifyFromStartAndSkip((at, code)) => self.put(at, code)?,
            PushResult::ModifyFromStartAndPushAndSkip((at, code, byte)) => {
                self.put(at, code)?;
                self.put(self.bytes, byte)?;
                self.bytes += 1;
            }
        }
        self.bytes += 1;
        Ok(())
    }

    fn finalize(mut self) -> postcard::Result<usize> {
        let end = self.bytes;
        let (at, code) = core::mem::take(&mut self.state).finalize();
        self.put(at, code)?;
        self.put(end, 0)?;
        Ok(end + 1)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::triage::test_random::Random;

    /// CRC-32C bit by bit, from the polynomial.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &b| {
            (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
        })
    }

    /// COBS as the paper words it: each block is a count and the bytes up to the next zero, at most 254.
    fn cobs_reference(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        for mut run in bytes.split(|&b| b == 0) {
            while run.len() >= 254 {
                out.push(255);
                out.extend(&run[..254]);
                run = &run[254..];
            }
            out.push(run.len() as u8 + 1);
            out.extend(run);
        }
        out.push(0);
        out
    }

    #[test]
    fn frames_match_an_independent_writing() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut random = Random(1);
        for len in (0..300).chain([508, 509, 1000, 4096]) {
            for zeros in [0, 2, 100] {
                // `zeros` percent of the bytes are zero, the others are not.
                let payload: Vec<u8> =
                    (0..len).map(|_| if random.below(100) < zeros { 0 } else { random.below(255) as u8 + 1 }).collect();
                let mut plain = vec![];
                let mut n = len as u64;
                while n >= 128 {
                    plain.push(n as u8 | 128);
                    n >>= 7;
                }
                plain.push(n as u8);
                plain.extend(&payload);
                let max = max_frame_bytes(plain.len());
                plain.extend(crc32c(&plain).to_le_bytes());
                let expected = cobs_reference(&plain);

                let mut buffer = vec![0; max];
                let n = encode(payload.as_slice(), &mut buffer).unwrap();
                assert_eq!(buffer[..n], expected, "{len} bytes");
                assert_eq!(encoded_len(payload.as_slice()), Ok(n));
                assert_eq!(
                    encode(payload.as_slice(), &mut buffer[..n - 1]),
                    Err(EncodeError::Buffer { buffer: n - 1 })
                );
                let decoded = decode(&mut buffer[..n - 1]).unwrap();
                assert_eq!(parse::<&[u8]>(decoded), Some(payload.as_slice()));
            }
        }
    }

    #[test]
    fn damage_is_reported_and_passed_over() {
        let mut buffer = [0; 64];
        let mut stream = vec![0u8];
        let mut starts = vec![];
        for number in 0..100u32 {
            starts.push(stream.len());
            let n = encode(&(number, [7u8; 20]), &mut buffer).unwrap();
            stream.extend(&buffer[..n]);
        }
        let read = |mut stream: Vec<u8>| {
            let (mut good, mut bad) = (vec![], vec![]);
            for frame in frames(&mut stream) {
                match frame {
                    Ok(payload) => good.push(parse::<(u32, [u8; 20])>(payload).unwrap().0),
                    Err(damage) => bad.push(damage),
                }
            }
            (good, bad)
        };
        assert_eq!(read(stream.clone()), ((0..100).collect(), vec![]));
        // Any one changed byte costs that frame, or the two that lose or gain the zero between them; no other.
        for at in 1..stream.len() {
            for flip in [1, 0x80, stream[at].max(1)] {
                let mut damaged = stream.clone();
                damaged[at] ^= flip;
                let (good, bad) = read(damaged);
                assert!(!bad.is_empty() && good.len() >= 98, "byte {at}: {} good, {bad:?}", good.len());
                let hit = starts.iter().rposition(|&s| s <= at).unwrap() as u32;
                assert!(!good.contains(&hit));
                assert!((0..100).all(|i| good.contains(&i) || i == hit || i == hit + 1));
                // One further if the first byte became a zero: an empty frame stands before it.
                let start = starts[hit as usize];
                assert!((start..start + 2).contains(&bad[0].position));
            }
        }
        // Cut anywhere: all whole frames are there.
        for cut in 0..stream.len() {
            let whole = starts.iter().skip(1).filter(|&&s| s <= cut).count();
            let (good, bad) = read(stream[..cut].to_vec());
            assert_eq!(good.len(), whole);
            assert!(bad.len() <= 1 && bad.iter().all(|b| b.damage == Damage::CutOff));
        }
    }

    #[test]
    fn noise_is_never_taken_for_a_frame() {
        let mut random = Random(7);
        let mut found = 0;
        for _ in 0..if cfg!(miri) { 10 } else { 200 } {
            let mut noise: Vec<u8> = (0..1000).map(|_| random.below(32) as u8).collect();
            found += frames(&mut noise).filter(Result::is_ok).count();
        }
        assert_eq!(found, 0);
    }
}

//! The driver against a scripted bus whose bytes were computed apart from this crate, and against the camera in software
//! behind a noisy line.

use std::collections::VecDeque;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::{ErrorKind as PinErrorKind, ErrorType as PinErrorType, InputPin};
use embedded_hal::spi::{ErrorKind, ErrorType, Operation, SpiDevice};
use nadir::Tile;

use super::*;

// A camera with two u16 tiles of 1 band, 2 rows and 1 column; tile 1 is [300, 65535]. The CRCs are from a bitwise
// CRC-32C in Python whose check value over "123456789" is E3069283.
const IDENTIFY: [u8; 12] = [0x9f, 0, 0, 0, 0, 0, 0, 0, 0x84, 0x2c, 0x3d, 0x84];
const PREPARE_1: [u8; 12] = [0x10, 0, 0, 0, 1, 0, 0, 0, 0x86, 0x11, 0x1b, 0xd5];
const READ_1: [u8; 12] = [0x11, 0, 0, 0, 1, 0, 0, 0, 0xa1, 0x6c, 0x27, 0x9c];
const IDENTITY: [u8; 20] = [b'N', b'C', b'A', b'M', 1, 2, 1, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0x0a, 0x64, 0x6d, 0xfd];
const TILE_1: [u8; 12] = [1, 0, 0, 0, 0x2c, 0x01, 0xff, 0xff, 0x9f, 0x6c, 0x88, 0x34];

const SMALL: Identity = Identity { value_type: ValueType::U16, bands: 1, height: 2, width: 1, tiles: 2 };

/// One transaction: what must be written, and what is then read, or the bus's error.
type Step = (&'static [u8], Result<Vec<u8>, ErrorKind>);

/// A bus that follows a script, and counts the transactions it carried out.
struct Script(VecDeque<Step>);

impl Script {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self(steps.into_iter().collect())
    }
}

impl ErrorType for Script {
    type Error = ErrorKind;
}

impl SpiDevice for Script {
    fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), ErrorKind> {
        let (expected, answer) = self.0.pop_front().expect("a transaction that the script does not have");
        let mut answer = answer?.into_iter();
        let mut written = vec![];
        for operation in operations {
            match operation {
                Operation::Write(bytes) => written.extend_from_slice(bytes),
                // A short answer leaves the line high.
                Operation::Read(bytes) => bytes.iter_mut().for_each(|b| *b = answer.next().unwrap_or(0xff)),
                other => panic!("the driver only writes and reads, not {other:?}"),
            }
        }
        assert_eq!(written, expected);
        Ok(())
    }
}

/// A pin that is low for so many looks, and high after.
struct Pin(u32);

impl PinErrorType for Pin {
    type Error = PinErrorKind;
}

impl InputPin for Pin {
    fn is_high(&mut self) -> Result<bool, PinErrorKind> {
        self.0 = self.0.saturating_sub(1);
        Ok(self.0 == 0)
    }

    fn is_low(&mut self) -> Result<bool, PinErrorKind> {
        Ok(!self.is_high()?)
    }
}

struct BrokenPin;

impl PinErrorType for BrokenPin {
    type Error = PinErrorKind;
}

impl InputPin for BrokenPin {
    fn is_high(&mut self) -> Result<bool, PinErrorKind> {
        Err(PinErrorKind::Other)
    }

    fn is_low(&mut self) -> Result<bool, PinErrorKind> {
        Err(PinErrorKind::Other)
    }
}

#[derive(Default)]
struct Waited(u64);

impl DelayNs for Waited {
    fn delay_ns(&mut self, ns: u32) {
        self.0 += u64::from(ns);
    }
}

fn scripted(steps: impl IntoIterator<Item = Step>) -> Camera<Script, Pin, Waited> {
    Camera::new(Script::new(steps), Pin(0), Waited::default(), Patience::default())
}

fn ok(bytes: &[u8]) -> Result<Vec<u8>, ErrorKind> {
    Ok(bytes.to_vec())
}

fn flipped(bytes: &[u8], bit: usize) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    Ok(bytes)
}

/// An answer to IDENTIFY with other fields and a right CRC.
fn identity_with(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = IDENTITY.to_vec();
    change(&mut bytes[..16]);
    let crc = CRC.checksum(&bytes[..16]).to_le_bytes();
    bytes[16..].copy_from_slice(&crc);
    bytes
}

#[test]
fn the_bytes_on_the_wire_are_those_of_the_protocol() {
    let mut camera = scripted([(&IDENTIFY[..], ok(&IDENTITY)), (&PREPARE_1[..], ok(&[])), (&READ_1[..], ok(&TILE_1))]);
    let identity = camera.identify().unwrap();
    assert_eq!(identity, SMALL);
    let mut buffer = [0; 1];
    assert_eq!(camera.read_tile(&identity, 1, &mut buffer), Ok(Tile::U16(&[300, 65535])));
    assert_eq!(camera.retries(), 0);
}

#[test]
fn the_camera_in_software_sends_the_same_bytes() {
    assert_eq!(SMALL.to_bytes(), IDENTITY);
    let mut store = store_header(&SMALL).to_vec();
    store.extend([9, 9, 9, 9, 0x2c, 0x01, 0xff, 0xff]);
    let mut device = EmulatedCamera::new(TileStore::parse(&store).unwrap());
    let mut exchange = |command: &[u8], len: usize| {
        let mut answer = vec![0; len];
        device.transaction(&mut [Operation::Write(command), Operation::Read(&mut answer)]).unwrap();
        answer
    };
    assert_eq!(exchange(&IDENTIFY, 20), IDENTITY);
    assert_eq!(exchange(&READ_1, 2), [0xff; 2], "nothing was prepared");
    exchange(&PREPARE_1, 0);
    assert_eq!(exchange(&READ_1, 14)[..12], TILE_1);
    assert_eq!(exchange(&READ_1, 14)[12..], [0xff; 2]);
    let mut damaged = READ_1;
    damaged[4] = 0;
    assert_eq!(exchange(&damaged, 2), [0xff; 2]);
    // The same in the other two kinds of transfer.
    let mut both = [0; 14];
    both[..12].copy_from_slice(&READ_1);
    device.transaction(&mut [Operation::TransferInPlace(&mut both)]).unwrap();
    assert_eq!(both[12..], TILE_1[..2]);
    let mut answer = [0; 14];
    device.transaction(&mut [Operation::DelayNs(5), Operation::Transfer(&mut answer, &READ_1)]).unwrap();
    assert_eq!(answer[12..], TILE_1[..2]);
}

#[test]
fn every_flipped_bit_of_a_tile_is_noticed_and_read_again() {
    for bit in 0..8 * TILE_1.len() {
        let mut camera = scripted([
            (&PREPARE_1[..], ok(&[])),
            (&READ_1[..], flipped(&TILE_1, bit)),
            (&PREPARE_1[..], ok(&[])),
            (&READ_1[..], ok(&TILE_1)),
        ]);
        assert_eq!(camera.read_tile(&SMALL, 1, &mut [0; 4]), Ok(Tile::U16(&[300, 65535])), "bit {bit}");
        assert_eq!(camera.retries(), 1);
    }
    for bit in 0..8 * IDENTITY.len() {
        let mut camera = scripted([(&IDENTIFY[..], flipped(&IDENTITY, bit)), (&IDENTIFY[..], ok(&IDENTITY))]);
        assert_eq!(camera.identify(), Ok(SMALL));
        assert_eq!(camera.retries(), 1);
    }
}

#[test]
fn attempts_are_bounded() {
    let step = || (&IDENTIFY[..], flipped(&IDENTITY, 3));
    let mut camera = scripted([step(), step(), step()]);
    assert_eq!(camera.identify(), Err(CameraError::Crc { opcode: Opcode::Identify }));
    assert_eq!(camera.retries(), 3);
    // Even if no attempt is allowed, there is one.
    let patience = Patience { attempts: 0, ..Patience::default() };
    let mut camera = Camera::new(Script::new([step()]), Pin(0), Waited::default(), patience);
    assert!(camera.identify().is_err());
}

#[test]
fn short_answers_and_dead_lines_are_noticed() {
    for answer in [ok(&TILE_1[..11]), ok(&TILE_1[..4]), ok(&[]), ok(&[0; 12])] {
        let step = || [(&PREPARE_1[..], ok(&[])), (&READ_1[..], answer.clone())];
        let mut camera = scripted([step(), step(), step()].into_iter().flatten());
        let error = camera.read_tile(&SMALL, 1, &mut [0; 4]).unwrap_err();
        assert_eq!(error, CameraError::Crc { opcode: Opcode::Read });
        assert_eq!(error.to_string(), "camera: the answer to Read has a wrong CRC");
    }
    for line in [0, 0xff] {
        let step = || (&IDENTIFY[..], Ok(vec![line; 20]));
        assert_eq!(scripted([step(), step(), step()]).identify(), Err(CameraError::Crc { opcode: Opcode::Identify }),);
    }
}

#[test]
fn a_bus_error_is_tried_again_and_then_named() {
    let broken = || (&IDENTIFY[..], Err(ErrorKind::ModeFault));
    assert_eq!(scripted([broken(), (&IDENTIFY[..], ok(&IDENTITY))]).identify(), Ok(SMALL));
    let error = scripted([broken(), broken(), broken()]).identify().unwrap_err();
    assert_eq!(error, CameraError::Bus(ErrorKind::ModeFault));
    assert_eq!(error.to_string(), "camera: the SPI bus reports ModeFault");
}

#[test]
fn another_tile_than_asked_for_is_refused() {
    let mut other = vec![0, 0, 0, 0, 0x2c, 0x01, 0xff, 0xff];
    other.extend(CRC.checksum(&other).to_le_bytes());
    let step = || [(&PREPARE_1[..], ok(&[])), (&READ_1[..], ok(&other))];
    let error = scripted([step(), step(), step()].into_iter().flatten()).read_tile(&SMALL, 1, &mut [0; 4]).unwrap_err();
    assert_eq!(error, CameraError::OtherTile { tile: 1, found: 0 });
    assert_eq!(error.to_string(), "camera: asked for tile 1, got tile 0");
}

#[test]
fn data_ready_is_awaited_for_a_bounded_time() {
    let steps = || [(&PREPARE_1[..], ok(&[])), (&READ_1[..], ok(&TILE_1))];
    let patience = Patience { attempts: 2, ready_us: 1000, poll_us: 100 };
    let mut camera = Camera::new(Script::new(steps()), Pin(8), Waited::default(), patience);
    assert!(camera.read_tile(&SMALL, 1, &mut [0; 4]).is_ok());
    let prepare = || (&PREPARE_1[..], ok(&[]));
    let mut camera = Camera::new(Script::new([prepare(), prepare()]), Pin(u32::MAX), Waited::default(), patience);
    let error = camera.read_tile(&SMALL, 1, &mut [0; 4]).unwrap_err();
    assert_eq!(error, CameraError::NotReady { tile: 1, waited_us: 1000 });
    assert_eq!(error.to_string(), "camera: tile 1 was not ready after 1000 us");
    let mut camera = Camera::new(Script::new([prepare(), prepare()]), BrokenPin, Waited::default(), patience);
    assert_eq!(camera.read_tile(&SMALL, 1, &mut [0; 4]), Err(CameraError::Pin));
}

#[test]
fn a_device_that_is_no_such_camera_is_named_at_once() {
    let identify = |bytes: Vec<u8>| scripted([(&IDENTIFY[..], Ok(bytes))]).identify().unwrap_err();
    assert_eq!(identify(identity_with(|b| b[..4].copy_from_slice(b"FLSH"))), CameraError::Magic(*b"FLSH"));
    assert_eq!(identify(identity_with(|b| b[4] = 2)).to_string(), "camera: protocol version 2, expected 1",);
    assert_eq!(identify(identity_with(|b| b[5] = 3)), CameraError::ValueType(3));
    let empty = identify(identity_with(|b| b[8] = 0));
    assert_eq!(empty.to_string(), "camera: tiles of 1 bands x 0 x 1 are not possible");
    let huge = identify(identity_with(|b| b[6..12].fill(0xff)));
    assert_eq!(huge, CameraError::Shape { bands: 65535, height: 65535, width: 65535 });
}

#[test]
fn what_cannot_be_read_is_refused_before_a_byte_is_sent() {
    let error = scripted([]).read_tile(&SMALL, 2, &mut [0; 4]).unwrap_err();
    assert_eq!(error.to_string(), "camera: no tile 2, there are 2");
    let large = Identity { height: 3, ..SMALL };
    let error = scripted([]).read_tile(&large, 1, &mut [0; 1]).unwrap_err();
    assert_eq!(error.to_string(), "camera: a tile has 6 bytes, the buffer holds 4");
    let huge = Identity { bands: u16::MAX, height: u16::MAX, width: u16::MAX, ..SMALL };
    assert!(matches!(scripted([]).read_tile(&huge, 1, &mut [0; 1]), Err(CameraError::TooLarge { .. })));
}

#[test]
fn every_type_of_value_is_read() {
    for (value_type, expected) in [
        (ValueType::U8, Tile::U8(&[0, 0, 128, 63])),
        (ValueType::U16, Tile::U16(&[0, 16256])),
        (ValueType::F32, Tile::F32(&[1.0])),
    ] {
        let identity = Identity { value_type, bands: 1, height: 1, width: 4 / value_type.bytes() as u16, tiles: 1 };
        let mut store = store_header(&identity).to_vec();
        store.extend(1f32.to_le_bytes());
        let device = EmulatedCamera::new(TileStore::parse(&store).unwrap());
        let mut camera = Camera::new(device, AlwaysReady, Waited::default(), Patience::default());
        let identity = camera.identify().unwrap();
        assert_eq!(camera.read_tile(&identity, 0, &mut [0; 3]), Ok(expected));
    }
}

/// Flips one bit of every so many bytes that pass in either direction.
struct Noisy<S> {
    inner: S,
    every: usize,
    count: usize,
}

impl<S: ErrorType> ErrorType for Noisy<S> {
    type Error = S::Error;
}

impl<S: SpiDevice> SpiDevice for Noisy<S> {
    fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), S::Error> {
        let mut disturb = |bytes: &mut [u8]| {
            for byte in bytes {
                self.count += 1;
                if self.count.is_multiple_of(self.every) {
                    *byte ^= 1 << (self.count / self.every % 8);
                }
            }
        };
        let mut written: Vec<Vec<u8>> = vec![];
        for operation in operations.iter() {
            if let Operation::Write(bytes) = operation {
                let mut bytes = bytes.to_vec();
                disturb(&mut bytes);
                written.push(bytes);
            }
        }
        let mut written = written.iter();
        let mut passed: Vec<Operation<'_, u8>> = operations
            .iter_mut()
            .map(|operation| match operation {
                Operation::Write(_) => Operation::Write(written.next().unwrap()),
                Operation::Read(bytes) => Operation::Read(bytes),
                other => panic!("the driver only writes and reads, not {other:?}"),
            })
            .collect();
        self.inner.transaction(&mut passed)?;
        for operation in operations {
            if let Operation::Read(bytes) = operation {
                disturb(bytes);
            }
        }
        Ok(())
    }
}

#[test]
fn a_noisy_line_gives_right_tiles_or_an_error() {
    let identity = Identity { value_type: ValueType::U8, bands: 3, height: 4, width: 4, tiles: 20 };
    let mut store = store_header(&identity).to_vec();
    store.extend((0..20 * 48u32).map(|i| (i * i % 251) as u8));
    let tiles = TileStore::parse(&store).unwrap();
    let (mut right, mut lost) = (0, 0);
    for every in [61, 97, 150, 1009] {
        let device = Noisy { inner: EmulatedCamera::new(tiles), every, count: 0 };
        let mut camera = Camera::new(device, AlwaysReady, Waited::default(), Patience::default());
        for index in 0..20 {
            match camera.read_tile(&identity, index, &mut [0; 12]) {
                Ok(tile) => {
                    assert_eq!(tile, Tile::U8(tiles.tile(index).unwrap()));
                    right += 1;
                }
                Err(error) => {
                    assert_eq!(error, CameraError::Crc { opcode: Opcode::Read });
                    lost += 1;
                }
            }
        }
        assert!(camera.retries() > 0, "one bit in {every} bytes must be felt");
    }
    assert!(right >= 40 && lost > 0, "{right} right, {lost} lost: the test sees both outcomes");
}

#[test]
fn stores_are_checked() {
    let error = |bytes: &[u8]| TileStore::parse(bytes).unwrap_err().to_string();
    assert!(error(&[]).contains("0 bytes, the header alone has 32"));
    assert!(error(&[0; 64]).contains("no valid header"));
    let mut store = store_header(&SMALL).to_vec();
    store.extend([0; 7]);
    assert!(error(&store).contains("the tiles take 8 bytes, 7 are there"));
    store.push(0);
    let store = TileStore::parse(&store).unwrap();
    assert_eq!(store.identity(), SMALL);
    assert_eq!((store.tile(1), store.tile(2), store.tile(u32::MAX)), (Some(&[0; 4][..]), None, None));
}

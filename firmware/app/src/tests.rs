//! The loop over tiles with an encoder whose results are known beforehand, and a wire that is read back.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use embedded_hal::spi::{ErrorType as SpiErrorType, Operation, SpiDevice};
use embedded_io::{ErrorKind, ErrorType, Write};
use nadir::Tile;
use nadir::encoder::EmbedError;
use nadir::model::Band;
use nadir::triage::frame;
use nadir::triage::prototypes::{Header, Prototypes, Table};
use nadir::triage::quality::Limits;
use nadir::triage::record::{Record, Rung, Scores, ValueType};

use crate::camera::{AlwaysReady, Camera, EmulatedCamera, Identity, Patience, TileStore, store_header};
use crate::link::{Link, LinkError, frame_bytes};
use crate::message::{Done, Failed, LINK_VERSION, Message, Part, Reason};
use crate::{Board, Embed, Memory, ModelFacts, RunError, Task, run};

/// Embeds a tile as its first two values, and refuses tiles that start with 13.
struct FirstTwo {
    bands: Vec<Band>,
}

impl FirstTwo {
    fn new() -> Self {
        let band = Band {
            name: "B4".try_into().unwrap(),
            unit: "grey level".try_into().unwrap(),
            mean: 1.0,
            std: 1.0,
            no_data: Some(0.0),
            saturation: Some(255.0),
        };
        Self { bands: vec![band] }
    }
}

impl Embed for FirstTwo {
    fn facts(&self) -> ModelFacts<'_> {
        ModelFacts {
            name: "first-two",
            embedding_space: "two",
            bands: &self.bands,
            side: 2,
            dimension: 2,
            arena_bytes: 64,
            macs: 7,
        }
    }

    fn embed(&self, tile: Tile<'_>, arena: &mut [u8], embedding: &mut [f32]) -> Result<(), EmbedError> {
        assert!(arena.len() >= 64 && arena.as_ptr().addr().is_multiple_of(16));
        let (first, second) = (tile.value(0).unwrap(), tile.value(1).unwrap());
        if first == 13.0 {
            return Err(EmbedError::EmbeddingLength { found: 13, expected: 2 });
        }
        embedding.copy_from_slice(&[first - 100.0, second - 100.0]);
        Ok(())
    }
}

/// A wire that breaks after so many bytes.
struct Wire<'w> {
    bytes: &'w mut Vec<u8>,
    limit: usize,
}

impl ErrorType for Wire<'_> {
    type Error = ErrorKind;
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, ErrorKind> {
        if self.bytes.len() >= self.limit {
            return Err(ErrorKind::BrokenPipe);
        }
        // A few bytes at a time, as a UART's buffer takes them.
        let count = bytes.len().min(3);
        self.bytes.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

/// Counts its calls.
#[derive(Default)]
struct Counter {
    ticks: u64,
    fed: u32,
}

impl Board for Counter {
    const TICKS_PER_SECOND: u32 = 1000;

    fn ticks(&mut self) -> u64 {
        self.ticks += 5;
        self.ticks
    }

    fn feed_watchdog(&mut self) {
        self.fed += 1;
    }
}

struct NoDelay;

impl embedded_hal::delay::DelayNs for NoDelay {
    fn delay_ns(&mut self, _: u32) {}
}

#[repr(align(16))]
struct Arena([u8; 80]);

const IDENTITY: Identity = Identity { value_type: ValueType::U8, bands: 1, height: 2, width: 2, tiles: 4 };
/// Fine; half empty and more; the encoder refuses; fine.
const TILES: [u8; 16] = [103, 104, 5, 5, 0, 0, 0, 9, 13, 1, 1, 1, 90, 110, 255, 9];

fn store(identity: &Identity, tiles: &[u8]) -> Vec<u8> {
    let mut store = store_header(identity).to_vec();
    store.extend(tiles);
    store
}

/// What can be set wrong.
struct Bench {
    store: Vec<u8>,
    arena: usize,
    arena_offset: usize,
    tile_words: usize,
    embedding: usize,
    frame: usize,
    wire: usize,
    prototypes: Option<Vec<u8>>,
}

impl Bench {
    fn new() -> Self {
        Self {
            store: store(&IDENTITY, &TILES),
            arena: 64,
            arena_offset: 0,
            tile_words: 1,
            embedding: 2,
            frame: frame_bytes(2),
            wire: usize::MAX,
            prototypes: None,
        }
    }

    /// The result of the run as text, its messages as text, and how often the watchdog was fed.
    fn run(&self) -> (Result<Done, String>, Vec<String>, u32) {
        let camera = EmulatedCamera::new(TileStore::parse(&self.store).unwrap());
        self.run_with(camera)
    }

    fn run_with(&self, device: impl SpiDevice) -> (Result<Done, String>, Vec<String>, u32) {
        let mut camera = Camera::new(device, AlwaysReady, NoDelay, Patience::default());
        let (mut bytes, mut buffer) = (vec![], vec![0; self.frame]);
        let mut link = match Link::open(Wire { bytes: &mut bytes, limit: self.wire }, &mut buffer) {
            Ok(link) => link,
            Err(error) => return (Err(error.to_string()), vec![], 0),
        };
        let encoder = FirstTwo::new();
        let prototypes = self.prototypes.as_ref().map(|bytes| Prototypes::parse(bytes).unwrap());
        let task = Task { encoder: &encoder, prototypes, limits: Limits::default() };
        let mut arena = Arena([0; 80]);
        let memory = Memory {
            tile: &mut vec![0; self.tile_words],
            arena: &mut arena.0[self.arena_offset..][..self.arena],
            embedding: &mut vec![0.0; self.embedding],
        };
        let mut board = Counter::default();
        let result = run(&mut camera, &mut link, &mut board, &task, memory).map_err(|error| error.to_string());
        (result, read(&mut bytes), board.fed)
    }

    fn fails(&self, part: Part, expected: &str) {
        let (result, messages, _) = self.run();
        assert_eq!(result.unwrap_err(), expected);
        let failed = Message::Failed(Failed { tile: None, part, reason: expected });
        assert_eq!(messages, [format!("{failed:?}")]);
    }
}

fn read(bytes: &mut [u8]) -> Vec<String> {
    frame::frames(bytes)
        .map(|payload| match payload {
            Ok(payload) => format!("{:?}", frame::parse::<Message>(payload).expect("a message")),
            Err(damage) => damage.to_string(),
        })
        .collect()
}

#[test]
fn every_tile_gets_its_messages() {
    let (result, messages, fed) = Bench::new().run();
    let done = Done { embedded: 2, vetoed: 1, failed: 1, retries: 0 };
    assert_eq!(result, Ok(done));
    let values = |a: f32, b: f32| [a.to_le_bytes(), b.to_le_bytes()].concat();
    let expected = [
        format!(
            "Start(Start {{ version: {LINK_VERSION}, model: \"first-two\", embedding_space: \"two\", dimension: 2, \
             tiles: 4, arena_bytes: 64, macs: 7, ticks_per_second: 1000 }})"
        ),
        format!("Embedding(Embedding {{ tile: 0, ticks: 5, values: {:?} }})", values(3.0, 4.0)),
        "Record(Record { tile: 0, no_data: 0, saturated: 0, scores: None, rung: Embedding, reason: Routine })".into(),
        "Record(Record { tile: 1, no_data: 750, saturated: 0, scores: None, rung: Record, reason: VetoedNoData })"
            .into(),
        "Failed(Failed { tile: Some(2), part: Encoder, reason: \"embedding has 2 values, there is place for 13\" })"
            .into(),
        format!("Embedding(Embedding {{ tile: 3, ticks: 5, values: {:?} }})", values(-10.0, 10.0)),
        "Record(Record { tile: 3, no_data: 0, saturated: 250, scores: None, rung: Embedding, reason: Routine })".into(),
        format!("{:?}", Message::Done(done)),
    ];
    assert_eq!(messages, expected);
    assert_eq!(fed, 7, "before each of 4 tiles and 3 embeddings");
}

fn prototypes(space: &str, dimension: usize) -> Vec<u8> {
    let header = Header {
        embedding_space: space,
        dimension: dimension as u16,
        prototypes: 2,
        bank: 1,
        midpoint: 0.0,
        temperature: 0.1,
        novel_from: 0.5,
    };
    let (centre, mut vectors, mut bank) = (vec![0.0; dimension], vec![0; 2 * dimension], vec![0; dimension]);
    // Class 7, which is wanted, lies along the first axis, class 9 against it, the bank along the second.
    vectors[0] = 100;
    vectors[dimension] = -100;
    bank[1] = 50;
    let table = Table { header, centre: &centre, labels: &[(7, true), (9, false)], vectors: &vectors, bank: &bank };
    let mut bytes = vec![0; table.max_bytes()];
    let length = table.write(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

#[test]
fn prototypes_give_scores_and_reasons() {
    // Embeddings (3, 4), (-4, 3) and (-3, -4); cosines to the first axis 0.6, -0.8 and -0.6, to the bank 0.8, 0.6, -0.8.
    let tiles = [103, 104, 1, 1, 96, 103, 1, 1, 97, 96, 1, 1];
    let identity = Identity { tiles: 3, ..IDENTITY };
    let bench = Bench { store: store(&identity, &tiles), prototypes: Some(prototypes("two", 2)), ..Bench::new() };
    let (result, messages, _) = bench.run();
    assert_eq!(result.unwrap().embedded, 3);
    let record = |tile, scores, reason| {
        let scores = Some(scores);
        format!(
            "{:?}",
            Message::Record(Record { tile, no_data: 0, saturated: 0, scores, rung: Rung::Embedding, reason })
        )
    };
    use nadir::triage::record::Reason::{Novel, Routine, Wanted};
    assert_eq!(messages[2], record(0, Scores::new(1.2, 0.2, 7), Wanted));
    assert_eq!(messages[4], record(1, Scores::new(-1.6, 0.4, 9), Routine));
    assert_eq!(messages[6], record(2, Scores::new(-1.2, 1.8, 9), Novel));
}

#[test]
fn what_does_not_fit_is_said_before_the_first_tile() {
    Bench { arena: 63, ..Bench::new() }.fails(Part::Encoder, "arena has 63 bytes, the model needs 64");
    Bench { arena_offset: 8, ..Bench::new() }.fails(Part::Encoder, "arena does not start at a multiple of 16 bytes");
    Bench { embedding: 1, ..Bench::new() }.fails(Part::Encoder, "there is place for 1 values of an embedding of 2");
    Bench { tile_words: 0, ..Bench::new() }.fails(Part::Camera, "camera: a tile has 4 bytes, the buffer holds 0");
    let wide = Identity { width: 3, ..IDENTITY };
    Bench { store: store(&wide, &[1; 24]), ..Bench::new() }
        .fails(Part::Camera, "tiles have [1, 2, 3] bands, rows and columns, the model takes [1, 2, 2]");
    Bench { prototypes: Some(prototypes("three", 2)), ..Bench::new() }
        .fails(Part::Triage, "prototypes are for 2 values of space three, the model gives 2 of two");
    Bench { prototypes: Some(prototypes("two", 3)), ..Bench::new() }
        .fails(Part::Triage, "prototypes are for 3 values of space two, the model gives 2 of two");
}

#[test]
fn a_camera_without_tiles_gives_an_empty_run() {
    let empty = Identity { tiles: 0, ..IDENTITY };
    let (result, messages, _) = Bench { store: store(&empty, &[]), ..Bench::new() }.run();
    assert_eq!(result, Ok(Done::default()));
    assert_eq!(messages.len(), 2);
}

/// A camera whose READ of one tile fails for good, and of another once.
struct Flaky<'a> {
    camera: EmulatedCamera<'a>,
    dead: u8,
    weak: u8,
    failed: BTreeSet<u8>,
}

impl SpiErrorType for Flaky<'_> {
    type Error = Infallible;
}

impl SpiDevice for Flaky<'_> {
    fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), Infallible> {
        let read = match &operations[0] {
            Operation::Write(command) if command[0] == 0x11 => Some(command[4]),
            _ => None,
        };
        self.camera.transaction(operations)?;
        if let Some(tile) = read
            && (tile == self.dead || (tile == self.weak && self.failed.insert(tile)))
            && let Operation::Read(values) = &mut operations[2]
        {
            values[0] ^= 0x10;
        }
        Ok(())
    }
}

#[test]
fn a_lost_tile_does_not_stop_the_next() {
    let bench = Bench { store: store(&IDENTITY, &[50; 16]), ..Bench::new() };
    let camera = EmulatedCamera::new(TileStore::parse(&bench.store).unwrap());
    let (result, messages, _) = bench.run_with(Flaky { camera, dead: 1, weak: 2, failed: BTreeSet::new() });
    assert_eq!(result, Ok(Done { embedded: 3, vetoed: 0, failed: 1, retries: 4 }));
    let reason = "camera: the answer to Read has a wrong CRC";
    let lost = Message::Failed(Failed { tile: Some(1), part: Part::Camera, reason });
    assert_eq!(messages[3], format!("{lost:?}"));
}

#[test]
fn a_dead_camera_is_named() {
    struct Dead;
    impl SpiErrorType for Dead {
        type Error = Infallible;
    }
    impl SpiDevice for Dead {
        fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), Infallible> {
            for operation in operations {
                if let Operation::Read(bytes) = operation {
                    bytes.fill(0xff);
                }
            }
            Ok(())
        }
    }
    let (result, messages, _) = Bench::new().run_with(Dead);
    assert_eq!(result.unwrap_err(), "camera: the answer to Identify has a wrong CRC");
    assert_eq!(messages.len(), 1);
}

#[test]
fn a_broken_wire_ends_the_run() {
    let full = {
        let mut bytes = vec![];
        let mut buffer = [0; 600];
        let mut link = Link::open(Wire { bytes: &mut bytes, limit: usize::MAX }, &mut buffer).unwrap();
        link.send(&Message::Done(Done::default())).unwrap();
        bytes.len()
    };
    assert!(full > 6);
    for wire in [0, 1, 20, 60] {
        let (result, ..) = Bench { wire, ..Bench::new() }.run();
        assert_eq!(result.unwrap_err(), "link: the writer reports BrokenPipe", "after {wire} bytes");
    }
    let (result, messages, _) = Bench { frame: 8, ..Bench::new() }.run();
    assert_eq!(result.unwrap_err(), "link: a frame does not fit its buffer of 8 bytes");
    assert!(messages.is_empty());
}

#[test]
fn frames_of_every_message_fit() {
    let text = "x".repeat(1000);
    let reason = Reason::new(&text);
    assert_eq!(reason.as_str().len(), 160);
    // Characters of several bytes are never cut in the middle.
    assert_eq!(Reason::new(&"µ".repeat(100)).as_str().chars().count(), 80);
    let mut wire = vec![];
    for dimension in [1, 128, 2816] {
        let mut buffer = vec![0; frame_bytes(dimension)];
        let mut link = Link::open(Wire { bytes: &mut wire, limit: usize::MAX }, &mut buffer).unwrap();
        let values = vec![0xff; 4 * dimension];
        let embedding = crate::message::Embedding { tile: u32::MAX, ticks: u64::MAX, values: &values };
        link.send(&Message::Embedding(embedding)).unwrap();
        let failed = Failed { tile: Some(u32::MAX), part: Part::Panic, reason: reason.as_str() };
        link.send(&Message::Failed(failed)).unwrap();
        let name = &text[..32];
        let start = crate::message::Start {
            version: u8::MAX,
            model: name,
            embedding_space: name,
            dimension: u16::MAX,
            tiles: u32::MAX,
            arena_bytes: u32::MAX,
            macs: u64::MAX,
            ticks_per_second: u32::MAX,
        };
        link.send(&Message::Start(start)).unwrap();
    }
    let mut small = [0; 100];
    let mut link = Link::open(Wire { bytes: &mut wire, limit: usize::MAX }, &mut small).unwrap();
    let embedding = crate::message::Embedding { tile: 0, ticks: 0, values: &[0; 100] };
    assert!(matches!(link.send(&Message::Embedding(embedding)), Err(LinkError::Encode(_))));
}

/// The bytes written out by hand from postcard's wire format: what a ground station reads may not change unnoticed.
#[test]
fn the_wire_format_is_fixed() {
    let values = [1, 2, 3, 4];
    let mut buffer = [0; 64];
    let embedding = Message::Embedding(crate::message::Embedding { tile: 300, ticks: 1, values: &values });
    assert_eq!(postcard::to_slice(&embedding, &mut buffer).unwrap(), [1, 0xac, 2, 1, 4, 1, 2, 3, 4]);
    let failed = Message::Failed(Failed { tile: Some(2), part: Part::Encoder, reason: "no" });
    assert_eq!(postcard::to_slice(&failed, &mut buffer).unwrap(), [3, 1, 2, 3, 2, b'n', b'o']);
    let done = Message::Done(Done { embedded: 1, vetoed: 2, failed: 3, retries: 4 });
    assert_eq!(postcard::to_slice(&done, &mut buffer).unwrap(), [4, 1, 2, 3, 4]);
}

#[test]
fn errors_that_end_a_run_are_small() {
    assert!(size_of::<RunError>() <= 64);
}

//! Writes the file that [`super::prototypes`] reads.

use crate::model::crc32c;

use super::prototypes::{Header, MAGIC, ParseError, VERSION, check_header};

/// What goes into a prototype file.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Its counts must be those of the slices below.
    pub header: Header<'a>,
    /// One value a dimension.
    pub centre: &'a [f32],
    /// Class label of each prototype, and whether it is wanted.
    pub labels: &'a [(u16, bool)],
    /// Prototypes, row by row; see [`quantize_direction`].
    pub vectors: &'a [i8],
    /// Bank, row by row.
    pub bank: &'a [i8],
}

/// Why a prototype file cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A slice does not fit the header's counts.
    #[error("{what} of a prototype table has length {found}, its header asks for {expected}")]
    Count {
        /// Which slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What the header asks for.
        expected: usize,
    },
    /// The buffer is too small, see [`Table::max_bytes`].
    #[error("a prototype table does not fit its buffer of {0} bytes")]
    Buffer(usize),
    /// The result would not be read back.
    #[error(transparent)]
    Invalid(#[from] ParseError),
}

impl Table<'_> {
    /// A buffer of so many bytes is enough.
    pub fn max_bytes(&self) -> usize {
        let header = 5 + self.header.embedding_space.len() + 3 * 3 + 3 * 4;
        12 + header + 4 * self.centre.len() + 3 * self.labels.len() + self.vectors.len() + self.bank.len() + 4
    }

    /// Writes the file to the start of `buffer`, checks it, and returns its length.
    pub fn write(&self, buffer: &mut [u8]) -> Result<usize, WriteError> {
        let (d, p) = (usize::from(self.header.dimension), usize::from(self.header.prototypes));
        for (what, found, expected) in [
            ("centre", self.centre.len(), d),
            ("labels", self.labels.len(), p),
            ("vectors", self.vectors.len(), p * d),
            ("bank", self.bank.len(), usize::from(self.header.bank) * d),
        ] {
            if found != expected {
                return Err(WriteError::Count { what, found, expected });
            }
        }
        check_header(&self.header)?;
        let mut header = [0; 64]; // At most 1 + 32 + 3 x 3 + 3 x 4.
        let full = WriteError::Buffer(buffer.len());
        let header = postcard::to_slice(&self.header, &mut header).map_err(|_| ParseError::Header("encoding"))?;
        let mut at = 0;
        let mut put = |bytes: &[u8]| -> Result<(), WriteError> {
            buffer.get_mut(at..).and_then(|b| b.get_mut(..bytes.len())).ok_or(full)?.copy_from_slice(bytes);
            at += bytes.len();
            Ok(())
        };
        put(&MAGIC)?;
        put(&VERSION.to_le_bytes())?;
        put(&(header.len() as u16).to_le_bytes())?;
        put(header)?;
        self.centre.iter().try_for_each(|v| put(&v.to_le_bytes()))?;
        self.labels.iter().try_for_each(|(label, _)| put(&label.to_le_bytes()))?;
        self.labels.iter().try_for_each(|(_, wanted)| put(&[u8::from(*wanted)]))?;
        self.vectors.iter().chain(self.bank).try_for_each(|v| put(&v.to_le_bytes()))?;
        let crc = crc32c(buffer.get(..at).ok_or(full)?);
        buffer.get_mut(at..).and_then(|b| b.get_mut(..4)).ok_or(full)?.copy_from_slice(&crc.to_le_bytes());
        let file = buffer.get(..at + 4).ok_or(full)?;
        super::prototypes::Prototypes::parse(file)?;
        Ok(file.len())
    }
}

/// Scales `direction` so that its largest magnitude is 127 and rounds half to even.
///
/// Returns `false`, with `out` all zero, if the direction is zero or not finite. `out` has the direction's length.
/// The angle to `direction` is at most about sqrt(D) / (2 x 127) x max / norm radians.
pub fn quantize_direction(direction: &[f32], out: &mut [i8]) -> bool {
    out.fill(0);
    let largest = direction.iter().fold(0f32, |max, v| if v.is_nan() { f32::NAN } else { max.max(v.abs()) });
    let usable = largest > 0.0 && largest.is_finite() && !direction.iter().any(|v| v.is_nan());
    if usable {
        for (out, v) in out.iter_mut().zip(direction) {
            // The quotient first: 127 / largest overflows for tiny vectors.
            *out = libm::rintf(v / largest * 127.0) as i8;
        }
    }
    usable
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::triage::prototypes::Prototypes;
    use crate::triage::test_random::Random;

    const HEADER: Header<'_> = Header {
        embedding_space: "0123456789abcdef",
        dimension: 3,
        prototypes: 4,
        bank: 2,
        midpoint: 0.1,
        temperature: 0.05,
        novel_from: 0.5,
    };
    const LABELS: [(u16, bool); 4] = [(3, true), (300, false), (3, true), (7, false)];
    const VECTORS: [i8; 12] = [127, 0, 0, 0, -127, 0, 0, 0, 50, 90, 90, 0];
    const BANK: [i8; 6] = [1, 0, 0, -1, 2, 3];

    fn table() -> Table<'static> {
        Table { header: HEADER, centre: &[1.0, 2.0, 3.0], labels: &LABELS, vectors: &VECTORS, bank: &BANK }
    }

    fn file() -> Vec<u8> {
        let mut bytes = vec![0; table().max_bytes()];
        let n = table().write(&mut bytes).unwrap();
        assert!(table().write(&mut bytes[..n - 1]).is_err());
        bytes.truncate(n);
        bytes
    }

    #[test]
    fn tables_round_trip() {
        let bytes = file();
        let read = Prototypes::parse(&bytes).unwrap();
        assert_eq!(*read.header(), HEADER);
        assert!(read.centre().eq([1.0, 2.0, 3.0]));
        assert!(read.labels().eq(LABELS));
        assert!(read.vectors().iter().flatten().map(|v| *v as i8).eq(VECTORS));
        assert!(read.bank().iter().flatten().map(|v| *v as i8).eq(BANK));
        assert_eq!(read.crc().to_le_bytes(), bytes[bytes.len() - 4..]);
    }

    #[test]
    fn scores_are_margins() {
        let bytes = file();
        let table = Prototypes::parse(&bytes).unwrap();
        let score = |e: [f32; 3]| table.score(&table.query(&e).unwrap());
        // About the centre: [2, 0, 0]. Wanted: cosine 1 to the first; other: 1/sqrt 2 to the fourth.
        let one = score([3.0, 2.0, 3.0]);
        assert!((one.margin - (1.0 - 0.5f32.sqrt())).abs() < 1e-6 && one.nearest == 3);
        // [0, -1, 0]: wanted at best 0, other 1.
        let two = score([1.0, 1.0, 3.0]);
        assert!((two.margin + 1.0).abs() < 1e-6 && two.nearest == 300);
        // The centre itself is equally near to all.
        assert_eq!(score([1.0, 2.0, 3.0]).margin, 0.0);
        assert!(table.query(&[1.0; 4]).is_err() && table.query(&[f32::NAN; 3]).is_err());
        assert!((table.probability(0.1) - 0.5).abs() < 1e-6);
        assert!((table.probability(0.15) - 1.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
        assert_eq!((table.probability(2.0), table.probability(-2.0) < 1e-9), (1.0, true));
    }

    #[test]
    fn without_others_the_cosine_is_the_margin() {
        let mut all_wanted = table();
        all_wanted.labels = &[(3, true); 4];
        let mut bytes = vec![0; all_wanted.max_bytes()];
        let n = all_wanted.write(&mut bytes).unwrap();
        let table = Prototypes::parse(&bytes[..n]).unwrap();
        assert!((table.score(&table.query(&[3.0, 2.0, 3.0]).unwrap()).margin - 1.0).abs() < 1e-6);
    }

    #[test]
    fn any_bytes_give_a_table_or_an_error() {
        let bytes = file();
        for cut in 0..bytes.len() {
            assert!(Prototypes::parse(&bytes[..cut]).is_err());
        }
        let repair = |bytes: &mut Vec<u8>| {
            let at = bytes.len() - 4;
            let crc = crc32c(&bytes[..at]);
            bytes[at..].copy_from_slice(&crc.to_le_bytes());
        };
        let mut random = Random(9);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(Prototypes::parse(&bad).is_err());
                // With the CRC made right again the rest has to stand by itself.
                repair(&mut bad);
                let _ = Prototypes::parse(&bad);
                let mut longer = bad.clone();
                longer.extend((0..random.below(9)).map(|_| 0));
                repair(&mut longer);
                let _ = Prototypes::parse(&longer);
            }
        }
        for _ in 0..if cfg!(miri) { 200 } else { 20_000 } {
            let mut bad = bytes.clone();
            for _ in 0..1 + random.below(4) {
                let at = 12 + random.below(bytes.len() as u64 - 12) as usize;
                bad[at] = random.bits() as u8;
            }
            repair(&mut bad);
            if let Ok(table) = Prototypes::parse(&bad)
                && let Ok(query) = table.query(&[0.5, -1.0, 1e18])
            {
                assert!(table.score(&query).margin.abs() <= 2.0);
            }
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |change: &dyn Fn(&mut Table<'static>)| {
            let mut bad = table();
            change(&mut bad);
            bad.write(&mut [0; 500]).unwrap_err()
        };
        let value = |what, index| WriteError::Invalid(ParseError::Value { what, index });
        assert_eq!(error(&|t| t.centre = &[0.0, f32::NAN, 0.0]), value("centre", 1));
        assert_eq!(error(&|t| t.bank = &[0, 0, 1, 0, 0, 0]), value("bank vector", 1));
        assert_eq!(error(&|t| t.labels = &[(1, false); 4]), WriteError::Invalid(ParseError::NothingWanted));
        assert_eq!(error(&|t| t.header.temperature = 0.0), WriteError::Invalid(ParseError::Header("temperature")));
        assert_eq!(error(&|t| t.header.dimension = 2), WriteError::Count { what: "centre", found: 3, expected: 2 });
        let mut newer = file();
        newer[8] = 2;
        assert_eq!(Prototypes::parse(&newer), Err(ParseError::Version(2)));
        assert_eq!(Prototypes::parse(b"NADIRPRx\x01\0\0\0"), Err(ParseError::Magic));
    }

    #[test]
    fn directions_keep_their_direction() {
        let mut random = Random(31);
        for dimension in [2, 16, 128, 320] {
            for magnitude in [1e-38, 1.0, 1e38] {
                let v: Vec<f32> = (0..dimension).map(|_| random.signed() * magnitude).collect();
                let mut q = vec![0; dimension];
                assert!(quantize_direction(&v, &mut q));
                let dot: f64 = v.iter().zip(&q).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let norm = |s: f64| s.sqrt();
                let (nv, nq) = (
                    norm(v.iter().map(|a| f64::from(*a).powi(2)).sum()),
                    norm(q.iter().map(|a| f64::from(*a).powi(2)).sum()),
                );
                let largest = v.iter().fold(0f64, |m, a| m.max(f64::from(a.abs())));
                let bound = (dimension as f64).sqrt() / 254.0 * largest / nv;
                assert!((dot / nv / nq).min(1.0).acos() <= bound * 1.01, "dimension {dimension}");
            }
        }
        let mut q = [1; 2];
        assert!(!quantize_direction(&[0.0, 0.0], &mut q) && q == [0, 0]);
        assert!(!quantize_direction(&[f32::NAN, 1.0], &mut q) && !quantize_direction(&[f32::INFINITY, 1.0], &mut q));
    }
}

//! `trainer data dump`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use nadir_formats::write_npy;

use super::{Rows, check_out};
use crate::data::mmearth::array::Element;
use crate::data::mmearth::{Modality, Release, Rules, Values};

/// Write tiles of one modality as .npy
///
/// Without --normalized the stored values in their stored type. With it, f32 (value - mean) / std with NaN where there is no data, and
/// i64 classes with -1; the statistics are those of the tile's level (L1C or L2A).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trainer data dump --data data_100k_v001 --rows 0,5,7 --modality sentinel2 --out s2.npy\n  \
                        trainer data dump --data data_100k_v001 --rows 0-99 --modality esa_worldcover --normalized --out esa.npy"
)]
pub struct Dump {
    /// A release folder of MMEarth, as published or packed
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Which tiles, in this order: all, or rows as in 0,5,10-19
    #[arg(long, value_name = "ROWS")]
    rows: Rows,

    /// The modality, named as its dataset
    #[arg(long, value_name = "NAME")]
    modality: Modality,

    /// Normalise numbers and turn codes and one-hot vectors into classes
    #[arg(long)]
    normalized: bool,

    /// Treat missing values as the loader of the released checkpoints did (docs/data.md)
    #[arg(long, requires = "normalized")]
    as_released: bool,

    /// Where to write the array
    #[arg(long, value_name = "X.npy")]
    out: PathBuf,
}

impl Dump {
    pub(super) fn run(self) -> Result<()> {
        check_out(&self.out)?;
        let release = Release::open(&self.data)?;
        let rows = self.rows.of(&release)?;
        let modality = self.modality;
        if !release.modalities().contains(&modality) {
            bail!("{}: holds no {modality}", self.data.display());
        }
        let mut shape = modality.expected(rows.len(), release.side()).shape();
        if self.normalized {
            let rules = if self.as_released { Rules::AsReleased } else { Rules::Masked };
            let mut all = Values::empty(modality);
            for &row in &rows {
                match (&mut all, release.values(row, modality, rules)?) {
                    (Values::Numbers(all), Values::Numbers(values)) => all.extend(values),
                    (Values::Classes(all), Values::Classes(values)) => all.extend(values),
                    _ => bail!("{modality} changes its kind"),
                }
            }
            match all {
                Values::Numbers(values) => write_npy(&self.out, &wide(&shape), &values)?,
                Values::Classes(values) => {
                    shape.remove(1);
                    write_npy(&self.out, &wide(&shape), &values)?;
                }
            }
        } else {
            let (mut bytes, mut row_bytes) = (Vec::new(), Vec::new());
            for &row in &rows {
                release.read_bytes(modality.name(), row, &mut row_bytes)?;
                bytes.extend_from_slice(&row_bytes);
            }
            macro_rules! write {
                ($type:ty) => {{
                    let values = bytes.as_chunks().0.iter().map(|b| <$type>::from_le_bytes(*b));
                    write_npy(&self.out, &wide(&shape), &values.collect::<Vec<$type>>())?
                }};
            }
            match modality.element() {
                Element::U8 => write!(u8),
                Element::I8 => write!(i8),
                Element::U16 => write!(u16),
                Element::I16 => write!(i16),
                Element::F32 => write!(f32),
                Element::Record { .. } => bail!("{modality} is a record"),
            }
        }
        println!("{}: {modality} of {} tiles, shape {shape:?}", self.out.display(), rows.len());
        Ok(())
    }
}

fn wide(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|&d| d as u64).collect()
}

//! MMEarth: its release folders as published, and everything between them and a batch.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`mod@array`], [`modality`] | what is stored: types, shapes, channels, classes, markers of no data |
//! | [`release`] | a folder and its tiles; HDF5 and packed shards look the same from here |
//! | [`statistics`], [`values`] | band statistics; stored values to normalised numbers and classes |
//! | [`split`] | train, validation and test by place |
//! | [`packed`] | shards that are read faster than HDF5 |
//! | [`loader`], [`feed`] | batches of aligned crops, prepared ahead; the same as input and targets of MP-MAE |
//! | [`inspect`], [`sheet`] | what is in a release, in figures and as a picture |
//!
//! `docs/data.md` says which value counts as missing in which modality, and why.

pub mod array;
pub mod feed;
mod hdf5;
pub mod inspect;
pub mod loader;
pub mod modality;
pub mod packed;
pub mod release;
pub mod sheet;
pub mod split;
pub mod statistics;
pub mod values;

pub use feed::Feed;
pub use modality::{Kind, Level, Modality};
pub use release::Release;
pub use values::{Rules, Values, Window};

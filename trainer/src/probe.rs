//! Probes: how well the classes can be read from frozen embeddings. Those of one class a tile are in [`nadir_formats::probe`].

pub mod compare;
pub mod map;
pub mod metrics;
mod multilabel;
mod share;
mod statistics;
pub mod table;

pub use multilabel::{LogisticEach, neighbour_shares};
pub use nadir_formats::probe::{Confusion, Logistic, Split, Standardiser, nearest_neighbours};
pub use share::share_of_labels;
pub use statistics::band_statistics;

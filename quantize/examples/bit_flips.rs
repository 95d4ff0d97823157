//! Flips every bit of a model file, one after the other: each must be refused by the parser and set right by the parity.
//!
//!     cargo run --release -p nadir-quantize --example bit_flips -- models/yocto-rgb-int8.nadir [THREADS]
//!
//! The file gets parity first if it has none. Prints what it counted; ends with 1 if a single bit was missed.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use nadir::guard::repair;
use nadir::model::Model;
use nadir_formats::AlignedBytes;
use nadir_quantize::batch::available_threads;
use nadir_quantize::writer::{Section, write_file};

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("usage: bit_flips MODEL.nadir [THREADS]")?;
    let threads = arguments.next().map_or(Ok(available_threads()), |text| text.parse())?;
    let bytes = AlignedBytes::read(path.as_ref())?;
    let model = Model::parse(&bytes)?;
    let good = write_file(model.header(), &Section::all_of(&model), true)?;
    let started = Instant::now();
    let (next, missed, unrepaired) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut file = AlignedBytes::copy_of(&good);
                loop {
                    let byte = next.fetch_add(1, Ordering::Relaxed);
                    if byte >= good.len() {
                        break;
                    }
                    for bit in 0..8 {
                        file[byte] ^= 1 << bit;
                        if Model::parse(&file).is_ok() {
                            missed.fetch_add(1, Ordering::Relaxed);
                        }
                        if !repair(&mut file).is_ok_and(|repaired| repaired.bits == 1) || *file != *good {
                            unrepaired.fetch_add(1, Ordering::Relaxed);
                            file.copy_from_slice(&good);
                        }
                    }
                }
            });
        }
    });
    let (missed, unrepaired) = (missed.into_inner(), unrepaired.into_inner());
    println!(
        "{path} with parity: {} bytes, {} bits flipped one by one in {:.0} s on {threads} threads",
        good.len(),
        8 * good.len(),
        started.elapsed().as_secs_f64()
    );
    println!("not noticed by the parser: {missed}; not repaired to the same bytes: {unrepaired}");
    Ok(if missed + unrepaired == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

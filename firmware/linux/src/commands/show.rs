//! `triage show`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nadir::triage::codes;
use nadir::triage::record::{Rung, ValueType};
use nadir_formats::{Matrix, Pixels, Tiles, write_integers};
use nadir_linux::outbox::{Outbox, OutboxHeader, outbox_file, read_outbox};

use super::print;
use super::table::{Line, json, rung_counts, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// The outbox: its folder, or the file in it
    outbox: PathBuf,
    /// Print one JSON object a tile instead of a table
    #[arg(long)]
    json: bool,
    /// Write what arrived whole to this folder: tiles.npy, embeddings.npy, and the capture index of each row
    #[arg(long, value_name = "DIR")]
    extract: Option<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let outbox = read_outbox(&arguments.outbox)?;
    let file = outbox_file(&arguments.outbox);
    let incomplete = outbox.incomplete();
    let lines: Vec<Line> = outbox
        .tiles
        .iter()
        .map(|(tile, received)| {
            let complete = incomplete.binary_search(tile).is_err();
            Line::new(*tile, received.record.as_ref(), received.bytes, complete)
        })
        .collect();
    if arguments.json {
        print(&json(&lines)?)?;
    } else {
        print(&(table(&lines) + &summary(&outbox)))?;
    }
    if let Some(folder) = &arguments.extract {
        extract(&outbox, folder)?;
    }
    for damaged in &outbox.damaged {
        eprintln!("{}: damaged frame at byte {}: {}", file.display(), damaged.position, damaged.what);
    }
    let at = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    match (outbox.damaged.len(), incomplete.len(), &outbox.header) {
        (0, 0, Some(_)) => Ok(()),
        (0, 0, None) => bail!("{}: no header in this outbox", file.display()),
        (d, i, _) => bail!("{}: {}, {} incomplete", file.display(), at(d, "damaged frame"), at(i, "tile")),
    }
}

fn summary(outbox: &Outbox) -> String {
    let counts = rung_counts(outbox.tiles.values().filter_map(|r| r.rung()));
    match &outbox.header {
        Some(h) => format!(
            "{} bytes for {} of {} tiles by {}, embedding space {}: {counts}\n",
            outbox.bytes,
            outbox.tiles.len(),
            h.captured,
            h.model,
            h.embedding_space
        ),
        None => format!("{} bytes for {} tiles, header lost: {counts}\n", outbox.bytes, outbox.tiles.len()),
    }
}

/// Writes the whole tiles and embeddings; a file that would be empty is not written.
fn extract(outbox: &Outbox, folder: &Path) -> Result<()> {
    let header = outbox.header.as_ref().context("the outbox's header is lost: its payloads cannot be read")?;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let whole = |rung: Rung| -> Vec<(i64, Vec<u8>)> {
        let tiles = outbox.tiles.iter().filter(|(_, r)| r.rung() == Some(rung));
        tiles.filter_map(|(tile, r)| Some((i64::from(*tile), r.payload(header)?))).collect()
    };
    let tiles = whole(Rung::Tile);
    if !tiles.is_empty() {
        pixels(header, &tiles).write(&folder.join("tiles.npy"))?;
        write_integers(&folder.join("tiles-index.npy"), &tiles.iter().map(|t| t.0).collect::<Vec<_>>())?;
    }
    let (mut index, mut data) = (Vec::new(), Vec::new());
    for (tile, bytes) in whole(Rung::Embedding) {
        let mut embedding = vec![0.0; header.dimension];
        codes::decode_int8(&bytes, &mut embedding).with_context(|| format!("embedding of tile {tile}"))?;
        index.push(tile);
        data.extend(embedding);
    }
    if !index.is_empty() {
        let matrix = Matrix { rows: index.len(), columns: header.dimension, data };
        matrix.write(&folder.join("embeddings.npy"))?;
        write_integers(&folder.join("embeddings-index.npy"), &index)?;
    }
    Ok(())
}

fn pixels(header: &OutboxHeader, tiles: &[(i64, Vec<u8>)]) -> Tiles {
    let bytes = tiles.iter().flat_map(|t| &t.1).copied();
    let whole: Vec<u8>;
    let pixels = match header.value {
        ValueType::U8 => Pixels::U8(bytes.collect()),
        ValueType::U16 => {
            whole = bytes.collect();
            Pixels::U16(whole.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect())
        }
        ValueType::F32 => {
            whole = bytes.collect();
            Pixels::F32(whole.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
    };
    Tiles { shape: [tiles.len(), header.bands.len(), header.height, header.width], pixels }
}

//! Packed folders: the same rows uncompressed, so that a row is one positioned read.
//!
//! `NAME.00000.bin`, `NAME.00001.bin` and so on hold the rows of dataset NAME one after the other, little-endian, as many to a
//! shard as `manifest.json` says by its `shard_bytes`. The release's JSON files lie beside them unchanged. The manifest has the
//! SHA-256 of every shard and JSON file; it is written last, so a folder that has one is complete.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use nadir_formats::write_atomic;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::array::ArrayInfo;
use super::release::{JSON_FILES, Release, find_one};

/// Lists and checksums everything in a packed folder.
pub(super) const MANIFEST: &str = "manifest.json";
/// Lists what is finished while a folder is being packed.
pub(super) const JOURNAL: &str = "pack.journal";
const FORMAT: &str = "nadir packed MMEarth tiles";
const VERSION: u32 = 1;
/// Shards held open; beyond this all are closed and opened anew as needed.
const OPEN_SHARDS: usize = 256;

/// What is packed, and how; a resumed run must have the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Plan {
    format: String,
    version: u32,
    stem: String,
    source_bytes: u64,
    shard_bytes: u64,
    arrays: BTreeMap<String, ArrayInfo>,
    /// SHA-256 of the JSON files.
    files: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    plan: Plan,
    /// SHA-256 of the shards.
    shards: BTreeMap<String, String>,
}

/// One finished shard, a line of the journal.
#[derive(Serialize, Deserialize)]
struct Finished {
    file: String,
    sha256: String,
}

/// Rows of one array that share a file.
struct Shard<'a> {
    array: &'a str,
    file: String,
    rows: std::ops::Range<usize>,
    bytes: u64,
}

impl Plan {
    fn rows_per_shard(&self, info: &ArrayInfo) -> usize {
        (self.shard_bytes as usize / info.row_bytes().max(1)).max(1)
    }

    fn shards(&self) -> Vec<Shard<'_>> {
        self.arrays
            .iter()
            .flat_map(|(name, info)| {
                let step = self.rows_per_shard(info);
                (0..info.rows.div_ceil(step)).map(move |index| {
                    let rows = index * step..((index + 1) * step).min(info.rows);
                    let bytes = (rows.len() * info.row_bytes()) as u64;
                    Shard { array: name, file: shard_name(name, index), rows, bytes }
                })
            })
            .collect()
    }
}

fn shard_name(array: &str, index: usize) -> String {
    format!("{array}.{index:05}.bin")
}

/// A packed folder, open for reading.
pub(super) struct Packed {
    folder: PathBuf,
    plan: Plan,
    open: Mutex<HashMap<String, Arc<File>>>,
}

impl Packed {
    /// Opens a folder with a manifest, and checks that every shard has its length.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let plan = read_manifest(folder)?.plan;
        for shard in plan.shards() {
            check_length(folder, &shard)?;
        }
        Ok(Self { folder: folder.to_owned(), plan, open: Mutex::default() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn stem(&self) -> &str {
        &self.plan.stem
    }

    pub(super) fn arrays(&self) -> &BTreeMap<String, ArrayInfo> {
        &self.plan.arrays
    }

    fn array(&self, name: &str) -> Result<&ArrayInfo> {
        self.plan.arrays.get(name).with_context(|| format!("{}: has no array {name}", self.folder.display()))
    }

    /// Puts the bytes of one row into `out`.
    pub(super) fn read_row(&self, name: &str, row: usize, out: &mut Vec<u8>) -> Result<()> {
        let info = self.array(name)?;
        ensure!(row < info.rows, "{}: array {name} has no row {row}", self.folder.display());
        let step = self.plan.rows_per_shard(info);
        let file = shard_name(name, row / step);
        let bytes = info.row_bytes();
        out.resize(bytes, 0);
        let read = self.handle(&file).and_then(|handle| read_at(&handle, out, (row % step * bytes) as u64));
        read.with_context(|| format!("{}: row {row}", self.folder.join(&file).display()))
    }

    fn handle(&self, file: &str) -> std::io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = open.get(file) {
            return Ok(handle.clone());
        }
        if open.len() >= OPEN_SHARDS {
            open.clear();
        }
        let handle = Arc::new(File::open(self.folder.join(file))?);
        open.insert(file.to_owned(), handle.clone());
        Ok(handle)
    }

    pub(super) fn read_all(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.array(name)?;
        let mut all = Vec::with_capacity(info.rows * info.row_bytes());
        for shard in self.plan.shards().iter().filter(|s| s.array == name) {
            let path = self.folder.join(&shard.file);
            all.extend(std::fs::read(&path).with_context(|| path.display().to_string())?);
        }
        ensure!(all.len() == info.rows * info.row_bytes(), "{}: array {name} is cut off", self.folder.display());
        Ok(all)
    }
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut out: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, out, at)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[read..];
        at += read as u64;
    }
    Ok(())
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let shown = path.display();
    let bytes = std::fs::read(&path).with_context(|| shown.to_string())?;
    let manifest: Manifest = serde_json::from_slice(&bytes).with_context(|| shown.to_string())?;
    let (format, version) = (&manifest.plan.format, manifest.plan.version);
    ensure!(format == FORMAT && version == VERSION, "{shown}: is {format:?} {version}, expected {FORMAT:?} {VERSION}");
    for shard in manifest.plan.shards() {
        ensure!(manifest.shards.contains_key(&shard.file), "{shown}: lists no shard {}", shard.file);
    }
    Ok(manifest)
}

fn check_length(folder: &Path, shard: &Shard) -> Result<()> {
    let path = folder.join(&shard.file);
    let length = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
    ensure!(length == shard.bytes, "{}: has {length} bytes, expected {}", path.display(), shard.bytes);
    Ok(())
}

/// What [`pack`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Shards in the folder.
    pub shards: usize,
    /// Of these, how many were written now.
    pub written: usize,
    /// Bytes of all shards.
    pub bytes: u64,
}

/// Packs a release into `out`, in shards of at most `shard_bytes` (or one row).
///
/// A shard is written beside its place, synced and renamed, then noted in a journal with its SHA-256: a run that was killed goes on where
/// it stopped. If `out` is already complete, all checksums are verified, and missing shards are written again.
///
/// # Errors
/// If the release cannot be read, `out` holds something else or cannot be written, or a checksum is wrong.
pub fn pack(release: &Release, out: &Path, shard_bytes: u64) -> Result<Report> {
    ensure!(!release.is_packed(), "{}: is packed already", release.folder().display());
    release.check_all_readable()?;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut json = BTreeMap::new();
    for suffix in JSON_FILES {
        let path = find_one(release.folder(), suffix)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        json.insert(name, std::fs::read(&path).with_context(|| path.display().to_string())?);
    }
    let plan = Plan {
        format: FORMAT.into(),
        version: VERSION,
        stem: release.stem().to_owned(),
        source_bytes: release.source_bytes()?,
        shard_bytes,
        arrays: release.arrays(),
        files: json.iter().map(|(name, bytes)| (name.clone(), hex(Sha256::digest(bytes).as_slice()))).collect(),
    };
    for (name, info) in &plan.arrays {
        let (rows, expected) = (info.rows, release.rows());
        ensure!(
            rows == expected,
            "{}: dataset {name} has {rows} rows, expected {expected}",
            release.folder().display()
        );
    }
    let complete = out.join(MANIFEST).exists();
    let mut done = if complete {
        let manifest = read_manifest(out)?;
        same_plan(out, &manifest.plan, &plan)?;
        manifest.shards
    } else {
        finished_before(out, &plan)?
    };
    let shards = plan.shards();
    done.retain(|file, _| out.join(file).exists());
    if complete {
        let known: Vec<_> = shards.iter().filter(|s| done.contains_key(&s.file)).collect();
        known.par_iter().try_for_each(|shard| verify_file(&out.join(&shard.file), &done[&shard.file]))?;
    }
    let journal_path = out.join(JOURNAL);
    let open = if complete { None } else { Some(File::options().append(true).open(&journal_path)) };
    let journal = Mutex::new(open.transpose().with_context(|| journal_path.display().to_string())?);
    for (name, bytes) in &json {
        write_atomic(&out.join(name), bytes)?;
    }
    let missing: Vec<_> = shards.iter().filter(|s| !done.contains_key(&s.file)).collect();
    let new: Vec<Finished> = missing
        .par_iter()
        .map(|shard| {
            let sha256 = write_shard(release, out, shard)?;
            let finished = Finished { file: shard.file.clone(), sha256 };
            if let Some(journal) = journal.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                let line = serde_json::to_string(&finished)? + "\n";
                let noted = journal.write_all(line.as_bytes()).and_then(|()| journal.sync_data());
                noted.with_context(|| journal_path.display().to_string())?;
            }
            Ok(finished)
        })
        .collect::<Result<_>>()?;
    let report =
        Report { shards: shards.len(), written: new.len(), bytes: shards.iter().map(|shard| shard.bytes).sum() };
    done.extend(new.into_iter().map(|f| (f.file, f.sha256)));
    let names: BTreeSet<String> = shards.iter().map(|s| s.file.clone()).collect();
    done.retain(|file, _| names.contains(file));
    let manifest = serde_json::to_vec_pretty(&Manifest { plan: plan.clone(), shards: done })?;
    write_atomic(&out.join(MANIFEST), &manifest)?;
    if journal_path.exists() {
        std::fs::remove_file(&journal_path).with_context(|| journal_path.display().to_string())?;
    }
    Ok(report)
}

/// Verifies the SHA-256 of every shard and JSON file of a packed folder; returns the number of shards.
///
/// # Errors
/// If the folder is not packed, or a file is missing or damaged.
pub fn verify(folder: &Path) -> Result<usize> {
    let manifest = read_manifest(folder)?;
    let files: Vec<_> = manifest.shards.iter().chain(&manifest.plan.files).collect();
    files.par_iter().try_for_each(|(file, sha256)| verify_file(&folder.join(file), sha256))?;
    Ok(manifest.shards.len())
}

fn same_plan(out: &Path, old: &Plan, new: &Plan) -> Result<()> {
    if old == new {
        return Ok(());
    }
    let what = if old.shard_bytes != new.shard_bytes {
        format!("shards of {} bytes, not {}", old.shard_bytes, new.shard_bytes)
    } else {
        format!("{} of {} bytes, not {} of {}", old.stem, old.source_bytes, new.stem, new.source_bytes)
    };
    bail!("{}: was packed from something else ({what}); pack into another folder", out.display())
}

/// The shards that an earlier, interrupted run finished; starts a journal if there was no such run.
fn finished_before(out: &Path, plan: &Plan) -> Result<BTreeMap<String, String>> {
    let path = out.join(JOURNAL);
    if !path.exists() {
        for entry in std::fs::read_dir(out).with_context(|| out.display().to_string())? {
            let name = entry.with_context(|| out.display().to_string())?.file_name();
            // What a run leaves that was killed before it could start a journal.
            let ours = name.to_string_lossy().ends_with(".part");
            ensure!(ours, "{}: is not empty, and holds no packed tiles", out.display());
        }
        write_atomic(&path, (serde_json::to_string(plan)? + "\n").as_bytes())?;
        return Ok(BTreeMap::new());
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut lines = text.split_inclusive('\n');
    let head = lines.next().unwrap_or_default();
    let old: Plan = serde_json::from_str(head).with_context(|| path.display().to_string())?;
    same_plan(out, &old, plan)?;
    // A line without its end was being written when the run was killed: its shard is written again.
    let whole: Vec<&str> = lines.filter(|line| line.ends_with('\n')).collect();
    let finished = whole.iter().map(|line| serde_json::from_str::<Finished>(line));
    let finished: Vec<Finished> = finished.collect::<Result<_, _>>().with_context(|| path.display().to_string())?;
    write_atomic(&path, (head.to_owned() + &whole.concat()).as_bytes())?;
    Ok(finished.into_iter().map(|f| (f.file, f.sha256)).collect())
}

/// Writes one shard whole or not at all, and returns its SHA-256.
fn write_shard(release: &Release, out: &Path, shard: &Shard) -> Result<String> {
    let path = out.join(&shard.file);
    let part = out.join(shard.file.clone() + ".part");
    let mut hash = Sha256::new();
    let mut row_bytes = Vec::new();
    let file = File::create(&part).with_context(|| part.display().to_string())?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    for row in shard.rows.clone() {
        release.read_bytes(shard.array, row, &mut row_bytes)?;
        hash.update(&row_bytes);
        writer.write_all(&row_bytes).with_context(|| part.display().to_string())?;
    }
    let flushed = writer.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all());
    flushed.and_then(|()| std::fs::rename(&part, &path)).with_context(|| part.display().to_string())?;
    Ok(hex(hash.finalize().as_slice()))
}

fn verify_file(path: &Path, expected: &str) -> Result<()> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).with_context(|| path.display().to_string())?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let found = hex(hash.finalize().as_slice());
    ensure!(
        found == expected,
        "{}: is damaged: its SHA-256 is {found}, the manifest has {expected}; delete it and pack again",
        path.display()
    );
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

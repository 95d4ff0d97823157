//! What the tests of the `trainer` command share.

// Every test file compiles this one for itself, and none uses all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use nadir_formats::{Pixels, Tiles, write_integers};
use tempfile::TempDir;

/// A folder on which commands run; gone when dropped.
pub struct Desk {
    dir: TempDir,
}

impl Desk {
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `trainer` with arguments in which `@NAME` stands for a path on the desk.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.env("RAYON_NUM_THREADS", "2");
        command.args(arguments.split_whitespace().map(|a| match a.split_once('@') {
            Some((before, name)) => format!("{before}{}", self.path(name).to_str().unwrap()),
            None => a.to_owned(),
        }));
        command
    }

    pub fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn succeed(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command that must fail with one error line that holds all `parts`, and exit code 2.
    pub fn refuse(&self, arguments: &str, parts: &[&str]) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{arguments}\n{text}");
        assert!(text.starts_with("trainer: "), "{arguments}\n{text}");
        for part in parts {
            assert!(text.contains(part), "{arguments}\nno {part:?} in {text}");
        }
    }

    /// Every file of a folder with its bytes.
    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(self.path(folder)).unwrap().map(Result::unwrap);
        entries.map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap())).collect()
    }
}

pub const SIDE: usize = 16;
pub const COUNT: usize = 48;

/// A folder with tiles of three classes, their labels, split and table, and room for runs.
pub fn desk() -> Desk {
    let desk = Desk::empty();
    let mut noise = 12345u32;
    let mut pixel = |class: usize, band: usize, at: usize| {
        noise = noise.wrapping_mul(1664525).wrapping_add(1013904223);
        let stripes = at.checked_div(class).map_or(0, |stripe| 40 * (stripe % 2));
        (40 + 30 * ((class + band) % 3) + stripes) as u8 + (noise >> 28) as u8
    };
    let pixels = (0..COUNT * 3 * SIDE * SIDE)
        .map(|i| pixel(i / (3 * SIDE * SIDE) % 3, i / (SIDE * SIDE) % 3, i % (SIDE * SIDE)))
        .collect();
    Tiles { shape: [COUNT, 3, SIDE, SIDE], pixels: Pixels::U8(pixels) }.write(&desk.path("tiles.npy")).unwrap();
    let column = |f: &dyn Fn(usize) -> i64| (0..COUNT).map(f).collect::<Vec<_>>();
    write_integers(&desk.path("labels.npy"), &column(&|i| (i % 3) as i64)).unwrap();
    write_integers(&desk.path("split.npy"), &column(&|i| (i / 3 % 4).saturating_sub(1) as i64)).unwrap();
    let mut table = "lat,lon,height,place\n".to_owned();
    for i in 0..COUNT {
        let height = if i % 5 == 0 { String::new() } else { format!("{}", 100 * (i % 3) + i) };
        table.push_str(&format!("{},{},{height},{}\n", 40 + i % 7, 2 * i, ["coast", "hills", ""][i % 3]));
    }
    std::fs::write(desk.path("table.csv"), table).unwrap();
    desk
}

/// |a - b| / |b|.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (difference / norm).sqrt()
}

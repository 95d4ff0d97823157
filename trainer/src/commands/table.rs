//! Values per tile that are predicted: columns of a table.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::data::{ImageTarget, Table, fingerprint_of_file, names};

/// The options about the table.
#[derive(Debug, Args)]
pub struct TableArgs {
    /// With --tiles, a table (CSV with header) with one row a tile
    #[arg(long, value_name = "T.csv")]
    table: Option<PathBuf>,

    /// Columns of latitude and longitude in degrees; sine and cosine of each are predicted
    #[arg(long, value_name = "LAT,LON", requires = "table")]
    geolocation: Option<String>,

    /// Columns of numbers to predict; log1p:COLUMN takes the logarithm of 1 + value first. Empty fields are ignored
    #[arg(long, value_name = "COLUMNS", requires = "table")]
    regress: Option<String>,

    /// Columns whose distinct fields are classes to predict. Empty fields are ignored
    #[arg(long, value_name = "COLUMNS", requires = "table")]
    classify: Option<String>,
}

impl TableArgs {
    /// What the table says of the tiles `rows` among `tiles` in all.
    pub fn targets(&self, tiles: usize, rows: &[usize]) -> Result<Vec<ImageTarget>> {
        let Some(path) = &self.table else { return Ok(Vec::new()) };
        ensure!(
            self.geolocation.is_some() || self.regress.is_some() || self.classify.is_some(),
            "--table: name columns with --geolocation, --regress or --classify"
        );
        let table = Table::read(path, tiles)?;
        let list = |option, text: &Option<String>| text.as_ref().map_or(Ok(Vec::new()), |text| names(option, text));
        let mut targets = Vec::new();
        if self.geolocation.is_some() {
            targets.extend(table.geolocation(&list("geolocation", &self.geolocation)?, rows)?);
        }
        for column in list("regress", &self.regress)? {
            targets.push(table.regression(&column, rows)?);
        }
        for column in list("classify", &self.classify)? {
            targets.push(table.classification(&column, rows)?);
        }
        for (at, target) in targets.iter().enumerate() {
            let before = targets[..at].iter().any(|other| other.name == target.name);
            ensure!(!before, "{}: two tasks are named {}", path.display(), target.name);
        }
        Ok(targets)
    }

    /// What a resumed run must share.
    pub fn settings(&self) -> Result<Value> {
        Ok(json!({
            "table": self.table,
            "table_contents": self.table.as_deref().map(fingerprint_of_file).transpose()?,
            "geolocation": self.geolocation,
            "regress": self.regress,
            "classify": self.classify,
        }))
    }

    /// The options as they would be typed, files left out.
    pub fn recipe(&self) -> String {
        let lists = [("geolocation", &self.geolocation), ("regress", &self.regress), ("classify", &self.classify)];
        lists.iter().filter_map(|(option, list)| list.as_ref().map(|list| format!(" --{option} {list}"))).collect()
    }
}

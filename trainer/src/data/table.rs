//! A table with one row a tile: places and measured values that the encoder is to predict.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// A table in memory.
#[derive(Clone, Debug)]
pub struct Table {
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<csv::StringRecord>,
}

/// One image-level task with its truth.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTarget {
    /// Name of the task.
    pub name: String,
    /// The truth a row.
    pub values: ImageValues,
}

/// The truth of an image-level task for every row in use.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageValues {
    /// `width` values a row, each with zero mean and unit variance over the rows; NaN is missing.
    Values {
        /// Values a row.
        width: usize,
        /// Row-major.
        data: Vec<f32>,
    },
    /// A class a row; -1 is missing.
    Classes {
        /// Number of classes.
        count: usize,
        /// Indices into the sorted distinct fields of the column.
        data: Vec<i64>,
    },
}

impl Table {
    /// Reads a CSV file with a header line and exactly `tiles` rows.
    pub fn read(path: &Path, tiles: usize) -> Result<Self> {
        let name = || path.display().to_string();
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).with_context(name)?;
        let columns = reader.headers().with_context(name)?.iter().map(str::to_owned).collect();
        let rows = reader.records().collect::<Result<Vec<_>, _>>().with_context(name)?;
        ensure!(rows.len() == tiles, "{}: has {} rows for {tiles} tiles", path.display(), rows.len());
        Ok(Self { path: path.to_owned(), columns, rows })
    }

    /// The tasks `lat` and `lon` of two values each, sine and cosine of the angle, from columns in degrees.
    pub fn geolocation(&self, columns: &[String], used: &[usize]) -> Result<Vec<ImageTarget>> {
        let [latitude, longitude] = columns else {
            bail!("--geolocation takes two columns, latitude and longitude, not {}", columns.len());
        };
        [("lat", latitude, 90.0), ("lon", longitude, 360.0)]
            .into_iter()
            .map(|(name, column, limit)| {
                let angles = self.numbers(column, used)?;
                if let Some(v) = angles.iter().find(|v| v.abs() > limit) {
                    bail!("{}: column {column} holds {v}, which is no angle in degrees", self.path.display());
                }
                let pairs = angles.iter().flat_map(|v| [v.to_radians().sin(), v.to_radians().cos()]).collect();
                self.standardised(name, column, 2, pairs)
            })
            .collect()
    }

    /// The regression of `column`, or of `log1p:column`, the logarithm of one more than its values.
    pub fn regression(&self, column: &str, used: &[usize]) -> Result<ImageTarget> {
        let (name, logarithm) = match column.strip_prefix("log1p:") {
            Some(name) => (name, true),
            None => (column, false),
        };
        let mut values = self.numbers(name, used)?;
        if logarithm {
            if let Some(v) = values.iter().find(|v| **v <= -1.0) {
                bail!("{}: column {name} holds {v}, log1p needs values above -1", self.path.display());
            }
            values.iter_mut().for_each(|v| *v = v.ln_1p());
        }
        self.standardised(name, name, 1, values)
    }

    /// The classification of `column`: its distinct fields, sorted, are the classes.
    pub fn classification(&self, column: &str, used: &[usize]) -> Result<ImageTarget> {
        let at = self.column(column)?;
        let field = |row: &usize| self.rows[*row].get(at).filter(|f| !is_missing(f));
        let classes: Vec<&str> = used.iter().filter_map(field).collect::<BTreeSet<_>>().into_iter().collect();
        let path = self.path.display();
        match classes[..] {
            [] => bail!("{path}: column {column} is empty in every row in use"),
            [one] => bail!("{path}: column {column} holds nothing but {one:?}"),
            _ => {}
        }
        let index = |f: &str| classes.binary_search(&f).map_or(-1, |i| i as i64);
        let data = used.iter().map(|row| field(row).map_or(-1, index)).collect();
        Ok(ImageTarget { name: task_name(column), values: ImageValues::Classes { count: classes.len(), data } })
    }

    /// The index of a column.
    fn column(&self, name: &str) -> Result<usize> {
        self.columns
            .iter()
            .position(|c| c == name)
            .ok_or_else(|| anyhow!("{}: has no column {name}; it has {}", self.path.display(), self.columns.join(", ")))
    }

    /// The column's numbers in the used rows; NaN where the field is empty or `nan`.
    fn numbers(&self, name: &str, used: &[usize]) -> Result<Vec<f64>> {
        let at = self.column(name)?;
        used.iter()
            .map(|&row| {
                let field = self.rows[row].get(at).unwrap_or("");
                if is_missing(field) {
                    return Ok(f64::NAN);
                }
                let number = field.parse::<f64>().ok().filter(|v| v.is_finite());
                number.ok_or_else(|| {
                    anyhow!("{}: row {row}, column {name} holds {field:?}, not a number", self.path.display())
                })
            })
            .collect()
    }

    /// A regression task of values brought to zero mean and unit variance, each of the `width` separately.
    fn standardised(&self, task: &str, column: &str, width: usize, mut values: Vec<f64>) -> Result<ImageTarget> {
        let path = self.path.display();
        for part in 0..width {
            let known = || values.iter().skip(part).step_by(width).filter(|v| !v.is_nan());
            let count = known().count() as f64;
            ensure!(count > 0.0, "{path}: column {column} is empty in every row in use");
            let mean = known().sum::<f64>() / count;
            let variance = known().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            ensure!(variance > 1e-24, "{path}: column {column} holds nothing but {mean}");
            let std = variance.sqrt();
            values.iter_mut().skip(part).step_by(width).for_each(|v| *v = (*v - mean) / std);
        }
        let data = values.into_iter().map(|v| v as f32).collect();
        Ok(ImageTarget { name: task_name(task), values: ImageValues::Values { width, data } })
    }
}

fn is_missing(field: &str) -> bool {
    field.is_empty() || field.eq_ignore_ascii_case("nan")
}

/// A column's name as a task's, which stands in parameter names and so has no dot.
fn task_name(column: &str) -> String {
    column.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str, tiles: usize) -> Result<Table> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        std::fs::write(&path, text).unwrap();
        Table::read(&path, tiles)
    }

    #[test]
    fn columns_become_targets() {
        let t = table("lat,lon,h,c\n0,90,1,x\n30,-90,,y\n90,0,3,\n0,0,7,x\n", 4).unwrap();
        let used = [0, 1, 2];
        let ImageValues::Values { width: 1, data } = t.regression("h", &used).unwrap().values else { panic!() };
        assert!(data[0] == -1.0 && data[1].is_nan() && data[2] == 1.0, "{data:?}");
        assert_eq!(
            t.classification("c", &used).unwrap().values,
            ImageValues::Classes { count: 2, data: vec![0, 1, -1] }
        );
        let places = t.geolocation(&["lat".into(), "lon".into()], &used).unwrap();
        let ImageValues::Values { width: 2, data } = &places[0].values else { panic!() };
        // sin of 0, 30 and 90 degrees: 0, 0.5, 1.
        let std = (1.0f64 / 6.0).sqrt();
        for (row, sine) in [(0, 0.0), (1, 0.5), (2, 1.0)] {
            assert!((f64::from(data[2 * row]) - (sine - 0.5) / std).abs() < 1e-6);
        }
        let ImageValues::Values { data, .. } = t.regression("log1p:h", &[0, 2]).unwrap().values else { panic!() };
        assert_eq!(data, [-1.0, 1.0]);
    }

    #[test]
    fn bad_tables_are_named() {
        let error = |r: Result<ImageTarget>| format!("{:#}", r.unwrap_err());
        let t = table("a,b,c\n1,,5\nz,,5\n", 2).unwrap();
        let missing = error(t.regression("lat", &[0, 1]));
        assert!(missing.contains("t.csv: has no column lat; it has a, b, c"), "{missing}");
        assert!(error(t.regression("a", &[0, 1])).contains("row 1, column a holds \"z\""));
        assert!(error(t.regression("b", &[0, 1])).contains("column b is empty"));
        assert!(error(t.classification("b", &[0, 1])).contains("column b is empty"));
        assert!(error(t.regression("c", &[0, 1])).contains("nothing but 5"));
        assert!(error(t.classification("c", &[0, 1])).contains("nothing but \"5\""));
        assert!(format!("{:#}", table("a\n1\n", 2).unwrap_err()).contains("1 rows for 2 tiles"));
    }
}

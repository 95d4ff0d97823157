//! What a value of the graph is, in the words of the encoder: a map, or a step on the way to one.
//!
//! Exporters write LayerNorm, GELU and Global Response Normalization (GRN) as many small nodes, in many orders. All those nodes multiply
//! and add; so a value is kept as a [`Sum`] of products of what can occur, and the orders fall together.

use std::collections::BTreeMap;

/// A map by the number of the layer that gives it; 0 is the input.
pub type Map = usize;

/// What an axis of a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Tiles.
    Batch,
    /// Channels, or bands.
    Channel,
    /// Rows of the map.
    Row,
    /// Columns of the map.
    Column,
    /// Nothing: a size of 1.
    One,
}

/// What a map's value may be multiplied with in a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    /// 1.
    One,
    /// The map x.
    X,
    /// E = erf(x / sqrt 2).
    Erf,
    /// x E.
    XErf,
    /// x, less its mean over channels, over its standard deviation.
    Normalised,
    /// N: a channel's norm over the mean norm of the channels.
    Share,
    /// x N.
    XShare,
}

/// Coefficients of the channels: one for all, or one each.
pub type Coefficients = Vec<f64>;

/// A sum of atoms of one map, each with its coefficients.
#[derive(Clone, Debug, PartialEq)]
pub struct Sum {
    /// The map x.
    pub map: Map,
    /// Coefficients by atom.
    pub terms: BTreeMap<Atom, Coefficients>,
    /// The epsilon of a normalised value or of a share.
    pub eps: f64,
}

/// A number a position or a channel, on the way to a normalisation of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// Mean over channels.
    Mean,
    /// The map less that.
    Centred,
    /// Its square.
    CentredSquare,
    /// Mean of that over channels.
    Variance,
    /// With epsilon.
    VarianceEps(f64),
    /// The square root.
    Deviation(f64),
    /// One over that.
    InverseDeviation(f64),
    /// The map's square.
    Square,
    /// Sum of squares over positions.
    Energy,
    /// Its root.
    Norm,
    /// Mean of the norms over channels.
    MeanNorm,
    /// With epsilon.
    MeanNormEps(f64),
    /// One over that.
    InverseMeanNorm(f64),
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// A sum; a map itself is the simplest.
    Sum(Sum),
    /// On the way to a LayerNorm or to GRN.
    Statistic(Map, Statistic),
    /// Where the input holds no number, or one of the numbers that mean "no data" (one for all bands or one each).
    Missing(Option<Coefficients>),
    /// After the classifier.
    Beyond,
}

/// How far a coefficient may be from what it should be: constants may have gone through f16.
const CLOSE: f64 = 1e-3;

fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= CLOSE * expected.abs()
}

/// Whether all coefficients are `value`.
fn all(coefficients: Option<&Coefficients>, value: f64) -> bool {
    coefficients.is_some_and(|c| c.iter().all(|&v| close(v, value)))
}

/// Coefficient by coefficient; `None` if the numbers of channels differ.
fn zip(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Option<Coefficients> {
    match (a.len(), b.len()) {
        (1, _) => Some(b.iter().map(|&b| f(a[0], b)).collect()),
        (_, 1) => Some(a.iter().map(|&a| f(a, b[0])).collect()),
        (n, m) => (n == m).then(|| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()),
    }
}

impl Sum {
    /// An atom of a map.
    pub fn of(map: Map, atom: Atom, eps: f64) -> Self {
        Self { map, terms: BTreeMap::from([(atom, vec![1.0])]), eps }
    }

    /// Whether the sum is of just these atoms.
    pub fn is_of(&self, atoms: &[Atom]) -> bool {
        self.terms.len() == atoms.len() && atoms.iter().all(|atom| self.terms.contains_key(atom))
    }

    /// Whether the atom has the coefficient 1 in all channels.
    pub fn has_plain(&self, atom: Atom) -> bool {
        all(self.terms.get(&atom), 1.0)
    }

    /// Whether it is the map itself.
    pub fn is_map(&self) -> bool {
        self.is_of(&[Atom::X]) && self.has_plain(Atom::X)
    }

    /// Whether it is GELU of the map: x / 2 + x E / 2.
    pub fn is_gelu(&self) -> bool {
        self.is_of(&[Atom::X, Atom::XErf])
            && all(self.terms.get(&Atom::X), 0.5)
            && all(self.terms.get(&Atom::XErf), 0.5)
    }

    /// Whether it is x / sqrt 2, of which GELU takes the error function.
    pub fn is_erf_argument(&self) -> bool {
        self.is_of(&[Atom::X]) && all(self.terms.get(&Atom::X), std::f64::consts::FRAC_1_SQRT_2)
    }

    /// Times a constant.
    pub fn scaled(mut self, by: &[f64]) -> Option<Self> {
        for coefficients in self.terms.values_mut() {
            *coefficients = zip(coefficients, by, |a, b| a * b)?;
        }
        Some(self)
    }

    /// Plus a constant.
    pub fn shifted(self, by: &[f64]) -> Option<Self> {
        let eps = self.eps;
        let constant = Self { map: self.map, terms: BTreeMap::from([(Atom::One, by.to_vec())]), eps };
        self.plus(&constant)
    }

    /// Plus another sum of the same map.
    pub fn plus(mut self, other: &Self) -> Option<Self> {
        for (atom, coefficients) in &other.terms {
            let sum = match self.terms.get(atom) {
                Some(own) => zip(own, coefficients, |a, b| a + b)?,
                None => coefficients.clone(),
            };
            self.terms.insert(*atom, sum);
        }
        self.eps = self.eps.max(other.eps);
        (self.map == other.map).then_some(self)
    }

    /// Times another sum of the same map, where the products are atoms again.
    pub fn times(&self, other: &Self) -> Option<Self> {
        let mut product = Self { map: self.map, terms: BTreeMap::new(), eps: self.eps.max(other.eps) };
        for (&a, x) in &self.terms {
            for (&b, y) in &other.terms {
                let atom = match (a.min(b), a.max(b)) {
                    (Atom::One, atom) => atom,
                    (Atom::X, Atom::Erf) => Atom::XErf,
                    (Atom::X, Atom::Share) => Atom::XShare,
                    _ => return None,
                };
                let terms = BTreeMap::from([(atom, zip(x, y, |x, y| x * y)?)]);
                product = product.plus(&Self { map: self.map, terms, eps: 0.0 })?;
            }
        }
        (self.map == other.map).then_some(product)
    }
}

impl Form {
    /// In words, for messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Form::Sum(sum) if sum.is_map() => "a map",
            Form::Sum(sum) if sum.terms.contains_key(&Atom::Erf) || sum.terms.contains_key(&Atom::XErf) => {
                "a part of GELU"
            }
            Form::Sum(sum) if sum.terms.contains_key(&Atom::Normalised) => "a part of LayerNorm",
            Form::Sum(sum) if sum.terms.contains_key(&Atom::Share) || sum.terms.contains_key(&Atom::XShare) => {
                "a part of Global Response Normalization"
            }
            Form::Sum(_) => "a map scaled and shifted",
            Form::Statistic(_, statistic) => match statistic {
                Statistic::Mean => "a mean over channels",
                Statistic::Centred => "a map less its mean over channels",
                Statistic::CentredSquare => "squared differences to the mean over channels",
                Statistic::Variance => "a variance over channels",
                Statistic::VarianceEps(_) => "a variance over channels with epsilon",
                Statistic::Deviation(_) | Statistic::InverseDeviation(_) => "a standard deviation over channels",
                Statistic::Square => "a map squared",
                Statistic::Energy => "channels' sums of squares",
                Statistic::Norm => "channels' norms",
                Statistic::MeanNorm => "the mean of the channels' norms",
                Statistic::MeanNormEps(_) | Statistic::InverseMeanNorm(_) => {
                    "the mean of the channels' norms with epsilon"
                }
            },
            Form::Missing(_) => "a mask of pixels without data",
            Form::Beyond => "what follows the classifier",
        }
    }
}

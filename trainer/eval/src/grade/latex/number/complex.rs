//! Complex numbers, principal values throughout.

/// A complex number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Complex {
    pub(in super::super) re: f64,
    pub(in super::super) im: f64,
}

impl Complex {
    pub(in super::super) fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    pub(in super::super) fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub(in super::super) fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    pub(in super::super) fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }

    pub(in super::super) fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    /// Not a number where `other` is nought.
    pub(in super::super) fn over(self, other: Self) -> Self {
        if other.im == 0.0 {
            return if other.re == 0.0 {
                Self::real(f64::NAN)
            } else {
                Self { re: self.re / other.re, im: self.im / other.re }
            };
        }
        let size = other.re * other.re + other.im * other.im;
        let top = self.times(Self { re: other.re, im: -other.im });
        Self { re: top.re / size, im: top.im / size }
    }

    pub(in super::super) fn exp(self) -> Self {
        let size = self.re.exp();
        if self.im == 0.0 { Self::real(size) } else { Self { re: size * self.im.cos(), im: size * self.im.sin() } }
    }

    pub(in super::super) fn ln(self) -> Self {
        if self.re == 0.0 && self.im == 0.0 {
            return Self::real(f64::NAN);
        }
        Self { re: self.abs().ln(), im: self.im.atan2(self.re) }
    }

    pub(in super::super) fn sqrt(self) -> Self {
        if self.im == 0.0 {
            let root = self.re.abs().sqrt();
            return if self.re < 0.0 { Self { re: 0.0, im: root } } else { Self::real(root) };
        }
        let (size, angle) = (self.abs().sqrt(), self.im.atan2(self.re) / 2.0);
        Self { re: size * angle.cos(), im: size * angle.sin() }
    }

    pub(in super::super) fn power(self, exponent: Self) -> Self {
        if self.re == 0.0 && self.im == 0.0 {
            return Self::real(if exponent.im == 0.0 && exponent.re > 0.0 { 0.0 } else { f64::NAN });
        }
        if self.im == 0.0 && self.re > 0.0 && exponent.im == 0.0 {
            return Self::real(self.re.powf(exponent.re));
        }
        self.ln().times(exponent).exp()
    }

    pub(in super::super) fn whole_power(self, exponent: i64) -> Self {
        let (mut base, mut left, mut result) = (self, exponent.unsigned_abs(), Self::real(1.0));
        while left > 0 {
            if left & 1 == 1 {
                result = result.times(base);
            }
            base = base.times(base);
            left >>= 1;
        }
        if exponent < 0 { Self::real(1.0).over(result) } else { result }
    }

    pub(in super::super) fn sin(self) -> Self {
        Self { re: self.re.sin() * self.im.cosh(), im: self.re.cos() * self.im.sinh() }
    }

    pub(in super::super) fn cos(self) -> Self {
        Self { re: self.re.cos() * self.im.cosh(), im: -self.re.sin() * self.im.sinh() }
    }

    /// Times the imaginary unit.
    pub(in super::super) fn turned(self) -> Self {
        Self { re: -self.im, im: self.re }
    }
}

//! One address or several, as builders take them.

/// An address, or an array, a slice or a vector of them.
pub trait Addresses: sealed::Sealed {
    /// All of them.
    fn into_list(self) -> Vec<String>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! one {
    ($($one:ty),*) => {$(
        impl sealed::Sealed for $one {}
        impl Addresses for $one {
            fn into_list(self) -> Vec<String> {
                vec![self.to_owned()]
            }
        }
    )*};
}

one!(&str, &String, String);

impl<S: Into<String>, const N: usize> sealed::Sealed for [S; N] {}
impl<S: Into<String>, const N: usize> Addresses for [S; N] {
    fn into_list(self) -> Vec<String> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<S: Into<String>> sealed::Sealed for Vec<S> {}
impl<S: Into<String>> Addresses for Vec<S> {
    fn into_list(self) -> Vec<String> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<S: AsRef<str>> sealed::Sealed for &[S] {}
impl<S: AsRef<str>> Addresses for &[S] {
    fn into_list(self) -> Vec<String> {
        self.iter().map(|one| one.as_ref().to_owned()).collect()
    }
}

impl<S: AsRef<str>> sealed::Sealed for &Vec<S> {}
impl<S: AsRef<str>> Addresses for &Vec<S> {
    fn into_list(self) -> Vec<String> {
        self.as_slice().into_list()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_taken_as_well_as_many() {
        let one = vec!["a:1".to_owned()];
        assert_eq!("a:1".into_list(), one);
        assert_eq!((&one[0]).into_list(), one);
        assert_eq!(one[0].clone().into_list(), one);
        assert_eq!(["a:1"].into_list(), one);
        assert_eq!(one.clone().into_list(), one);
        assert_eq!((&one).into_list(), one);
        assert_eq!(one[..].into_list(), one);
        assert!(Vec::<String>::new().into_list().is_empty());
    }
}

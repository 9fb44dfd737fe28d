//! How a client checks a server, and says who it is: certificates from PEM files.

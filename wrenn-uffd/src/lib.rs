//! A page-fault server: serves any page source to a process's userfaultfd.

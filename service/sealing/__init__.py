"""WHO may read an archive: the AEAD suite, key slots, and the TPM."""

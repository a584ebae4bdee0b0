/* Asked first: a library of another version than the Python code beside it is not used. */
int refault_native_version(void)
{
    return 2;
}

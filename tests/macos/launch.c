/* Stands in for the program in the tests: starts it with model.c preloaded, under the name by which this was called. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

int main(int count, char **words)
{
    (void)count;
    const char *called = (const char *)getauxval(AT_EXECFN);
    char cwd[4096] = "", path[8192];
    if (called[0] != '/' && getcwd(cwd, sizeof cwd) == NULL)
        cwd[0] = 0;
    snprintf(path, sizeof path, "%s%s%s", cwd, cwd[0] ? "/" : "", called);
    setenv("MODEL_OWN_PATH", path, 1);
    setenv("MODEL_PS", FOLDER "/ps", 1);
    setenv("LD_PRELOAD", LIBRARY, 1);
    execv(PROGRAM, words);
    fprintf(stderr, "%s: %s\n", PROGRAM, strerror(errno));
    return 127;
}

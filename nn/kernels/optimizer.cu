// placeholder
#include "values.cuh"
